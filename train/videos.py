"""Frames of people's own videos as samples for frame interpolation."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np

from mv2_jax.errors import InputError
from mv2_jax.infer import frames as video_frames
from mv2_jax.train.media.records import VIDEOS as SUFFIXES
from mv2_jax.train.source import Source
from mv2_jax.train.triplets import CUTS, IMAGES, Arrays

TRIES = 20  # draws for one sample before its video folder is called unfit
# Mean change, in levels, of a pair: less is a still picture, more is a cut (or hopeless).
STILL, CUT = 0.5, 48.0


class Videos(Source):
    """The videos below `data.root`, without captions: for frame interpolation alone.

    Raises:
        InputError: no such folder, or no video in it that is `data.side` high and wide.
    """

    settings: ClassVar = {"triplets": ("root", "side", "gap")}

    def __init__(self, data: Mapping[str, Any], seed: int) -> None:
        super().__init__(data, seed)
        self.paths = find(data["root"], data["side"])

    def facts(self) -> Mapping[str, Any]:
        videos = [[str(path), path.stat().st_size] for path in self.paths]
        return {"seed": self.seed, "videos": videos}

    def read(self, numbers: Any, frames: int, size: tuple[int, int]) -> tuple[Any, Arrays]:
        raise InputError("data.source: videos without captions train frame interpolation alone")

    def captions(self, notes: Arrays, seed: int, step: int) -> list[str]:
        raise InputError("data.source: these videos have no captions")

    def triplets(self, numbers: np.ndarray) -> Arrays:
        data = self.data
        return draw(self.paths, self.seed, numbers, data["side"], tuple(data["gap"]))


def find(root: str | os.PathLike[str], side: int) -> list[Path]:
    """The videos below a folder that are at least `side` pixels high and wide, sorted by name.

    Raises:
        InputError: no such folder, or no such video in it; the message says what was looked for.
    """
    folder = Path(root)
    if not str(root):
        raise InputError(
            "data.root: name the folder of videos to learn from, with --set data.root=FOLDER"
        )
    if not folder.is_dir():
        raise InputError(f"data.root: there is no folder {root}")
    named = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not named:
        raise InputError(f"data.root: no videos under {root} (looked for {', '.join(SUFFIXES)})")
    fit = [path for path in named if min(_size(path)) >= side]
    if not fit:
        raise InputError(
            f"data.root: none of the {len(named)} videos under {root} can be read and is at least "
            f"{side} pixels high and wide; a smaller data.side takes smaller ones"
        )
    return fit


def draw(
    paths: Sequence[Path], seed: int, numbers: np.ndarray, side: int, gap: tuple[int, int]
) -> Arrays:
    """Samples with these numbers, without guesses; each depends on the seed and its number alone.

    Two frames `gap` (least, most, at least 2) frames apart and one between them, cut to the square
    of `side` that moves most of a few random ones.

    Raises:
        InputError: no moving pair was found in `TRIES` draws.
    """
    samples = [_sample(paths, np.random.default_rng([seed, int(n)]), side, gap) for n in numbers]
    images = {name: np.stack([s[0][i] for s in samples]) for i, name in enumerate(IMAGES[:3])}
    return {**images, "time": np.array([s[1] for s in samples], np.float32)}


def _sample(
    paths: Sequence[Path], random: np.random.Generator, side: int, gap: tuple[int, int]
) -> tuple[list[np.ndarray], float]:
    for _ in range(TRIES):
        path = paths[random.integers(len(paths))]
        apart = int(random.integers(gap[0], gap[1] + 1))
        frames = _frames(path, random.random(), apart + 1)
        if len(frames) <= apart:
            continue
        middle = int(random.integers(1, apart))
        chosen = [frames[0], frames[apart], frames[middle]]
        cut = _busiest(chosen, random, side)
        if STILL <= _change(cut) <= CUT:
            return cut, middle / apart
    raise InputError(
        f"data.root: {TRIES} draws found no moving pair {gap[0]} to {gap[1]} frames apart (the "
        f"last looked at was in {path}); are the videos stills, or very short?"
    )


def _busiest(frames: list[np.ndarray], random: np.random.Generator, side: int) -> list[np.ndarray]:
    height, width = frames[0].shape[:2]
    cuts = []
    for _ in range(CUTS):
        y, x = random.integers(height - side + 1), random.integers(width - side + 1)
        cuts.append([frame[y : y + side, x : x + side] for frame in frames])
    return max(cuts, key=_change)


def _change(frames: list[np.ndarray]) -> float:
    return float(np.abs(frames[0].astype(np.int16) - frames[1]).mean())


def _frames(path: Path, share: float, count: int) -> list[np.ndarray]:
    """`count` frames from about a `share` of the way in, uint8 [H, W, 3].

    The last ones where the video ends before that, and fewer where it is damaged or too short.
    """
    try:
        with video_frames.opened(path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            start = _seek(container, stream, share)
            step = 1 / Fraction(stream.average_rate or 25)
            found: deque[tuple[Fraction, av.VideoFrame]] = deque(maxlen=count)
            for frame in container.decode(stream):
                last = found[-1][0] if found else None
                time = video_frames.time_of(frame, stream, last, step)
                found.append((start if time is None else time, frame))
                if len(found) == count and found[0][0] >= start:
                    break
            return [frame.to_ndarray(format="rgb24") for _, frame in found]
    except (av.FFmpegError, OSError):
        return []  # a damaged part: another draw finds another


def _seek(container: Any, stream: Any, share: float) -> Fraction:
    """Goes about a `share` of the way in, to a keyframe before; gives the place itself in seconds.

    Videos that do not know their length, which Matroska's streams do not, go by the file's.
    Files that do not either are read from the start.
    """
    begins = Fraction(container.start_time or 0, av.time_base)
    lasts = Fraction(container.duration or 0, av.time_base)
    if stream.duration:
        begins = (stream.start_time or 0) * stream.time_base
        lasts = stream.duration * stream.time_base
    start = begins + Fraction(0.9 * share) * lasts
    if lasts:
        with suppress(av.FFmpegError):  # where a file cannot be sought in, it is read up to there
            container.seek(int(start * av.time_base))
    return start


def _size(path: Path) -> tuple[int, int]:
    """(height, width), or zeros where there is no video to read."""
    try:
        with video_frames.opened(path) as container:
            if not container.streams.video:
                return 0, 0
            stream = container.streams.video[0]
            return stream.height, stream.width
    except (av.FFmpegError, OSError):
        return 0, 0
