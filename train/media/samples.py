"""From a number to a sample: which part of a video, which cut of its frames, which caption."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mv2_jax.errors import InputError
from mv2_jax.train.media.decode import GRACE, Info, cover, take
from mv2_jax.train.media.index import Index
from mv2_jax.train.media.records import Records

Size = tuple[int, int]


@dataclass
class MixedSource:
    """One source of a mixture. `failed`: what was found broken only when it was decoded."""

    records: Records
    index: Index
    settings: dict[str, Any]
    weight: float | None = None
    failed: dict[int, str] = field(default_factory=dict)

    def interval(self, info: Info) -> float:
        """Seconds between two frames of a training clip."""
        fps = self.settings["fps"]
        return 1 / fps if fps else self.settings["stride"] / (info.fps or 1)

    def longest(self, info: Info, lengths: Sequence[int]) -> int | None:
        """The most frames, of `lengths`, that a file has at this pace; None: too short for any."""
        room = info.seconds + GRACE
        fitting = [n for n in lengths if n == 1 or (n - 1) * self.interval(info) <= room]
        return max(fitting, default=None)


@dataclass(frozen=True)
class Sample:
    """What training sees of a file: its caption, and arrays for a batch: "pixels" uint8
    [T, H, W, 3], and "size_ids" [6], SDXL's numbers: height and width before any scaling, top and
    left of the cut, height and width."""

    caption: str
    arrays: dict[str, np.ndarray]


def sample(
    part: MixedSource, number: int, frames: int, size: Size, random: np.random.Generator | None
) -> Sample:
    """A file's sample. What is drawn is drawn from `random`, always alike; None: the middle of all.

    Raises:
        InputError: the file cannot be decoded; the message is the reason.
        OSError: it cannot be read.
    """
    info, settings = part.index.infos[number], part.settings
    draws = np.full(5, 0.5) if random is None else random.random(5)
    begin, _ = part.records.span(number)
    times = begin + _start(part, info, frames, draws[0]) + np.arange(frames) * part.interval(info)
    found = take(part.records.content(number), [0.0] if info.still else list(times))
    at = (draws[1], draws[2]) if settings["crop"] == "random" else (0.5, 0.5)
    flip = bool(draws[3] < settings["flip"]) and random is not None
    cut = [cover(picture, size, at, flip) for picture in found]
    pixels = np.stack([picture for picture, _ in cut])
    captions = part.records.captions(number)
    caption = captions[min(len(captions) - 1, int(draws[4] * len(captions)))] if captions else ""
    six = np.float32((*found[0].shape[:2], *cut[0][1], *size))
    pixels = np.repeat(pixels, frames, axis=0) if info.still else pixels
    return Sample(caption, {"pixels": pixels, "size_ids": six})


def _start(part: MixedSource, info: Info, frames: int, draw: float) -> float:
    """Where in a video a clip begins, in seconds."""
    room = max(0.0, info.seconds - (frames - 1) * part.interval(info))
    where = {"random": draw, "start": 0.0, "middle": 0.5}[part.settings["clip"]]
    # On a frame of the file, so that rounding shows no frame twice.
    return math.floor(where * room * info.fps + GRACE) / info.fps if info.fps else 0.0


def sizes_of(size: Size, settings: dict[str, Any], factor: int) -> list[Size]:
    """The sizes that samples may have: the stage's, or with `aspects` all of about its area.

    Raises:
        InputError: no multiple of `aspect_step` is left.
    """
    if not settings["aspects"]:
        return [tuple(size)]
    step, most = math.lcm(settings["aspect_step"], factor), settings["aspect_most"]
    area, found = size[0] * size[1], set()
    for height in range(step, int(math.sqrt(area * most)) + step, step):
        width = area // height // step * step
        for one in ((height, width), (width, height)):
            if min(one) > 0 and max(one) <= most * min(one):
                found.add(one)
    if not found:
        raise InputError(f"data.aspect_step: no size of about {size[0]}x{size[1]} has steps {step}")
    return sorted(found)


def nearest_size(info: Info, sizes: Sequence[Size]) -> Size:
    """The size whose shape is nearest to a file's; of two, the larger."""
    shape = math.log(info.height / info.width)
    return min(sizes, key=lambda s: (round(abs(math.log(s[0] / s[1]) - shape), 6), -s[0] * s[1]))
