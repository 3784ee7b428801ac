"""An arena's folder, made of folders of videos."""

from __future__ import annotations

import itertools
import secrets
import shutil
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from mv2_jax.errors import InputError
from mv2_jax.infer import media, outputs
from mv2_jax.infer.arena import pairs
from mv2_jax.infer.arena.pairs import Clip
from mv2_jax.infer.arena.store import GOLD, NORMAL, OVERLAP, Arena

DATABASE = "arena.db"
_PLAYED = {("h264", "yuv420p"), ("vp9", "yuv420p"), ("av1", "yuv420p")}  # by all browsers
_COARSE = 12  # pixels along a side of a damaged copy's squares


def database(out: str | Path) -> Path:
    """The SQLite file of an arena, given as its folder or as itself."""
    out = Path(out)
    return out if out.suffix == ".db" else out / DATABASE


def load(out: str | Path) -> Arena:
    """The arena of a folder. Raises InputError where there is none."""
    path = database(out)
    if not path.is_file():
        raise InputError(f"{path}: there is no arena; mv2 arena A/ B/ -o {path.parent} makes one")
    try:
        return Arena(path)
    except sqlite3.Error as error:
        raise InputError(f"cannot read {path}: {error}") from None


def make(folders: Sequence[Path], out: Path, overlap: int, gold: int) -> Arena:
    """Makes an arena; says what has no partner.

    Args:
        folders: two or more.
        out: the arena's folder, which appears once it is whole.
        overlap: comparisons that every rater sees.
        gold: comparisons of a video with a damaged copy of it, which every rater sees.

    Raises:
        InputError: folders that cannot be compared, or a video that cannot be read.
    """
    names = pairs.names(folders)
    clips = [pairs.read(folder) for folder in folders]
    found = [
        (first, second, pair)
        for first, second in itertools.combinations(range(len(folders)), 2)
        for pair in pairs.match(clips[first], clips[second])
    ]
    if not found:
        raise InputError(
            f"no video of {folders[0]} has a partner in {folders[1]}: they are paired by the "
            "prompts (and seeds) in their sidecars, or by file names"
        )
    _tell_alone(names, clips, found)
    rng = np.random.default_rng(0)
    scratch = outputs.here(out).with_name(f".{out.name}-{secrets.token_hex(4)}")
    with outputs.told(out):
        (scratch / "videos").mkdir(parents=True)
        try:
            _fill(scratch, names, folders, found, overlap, gold, rng)
            scratch.rename(out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return load(out)


def _tell_alone(names: Sequence[str], clips: Sequence[list[Clip]], found: Any) -> None:
    """Says which videos are compared with none."""
    paired = {clip.path for _, _, pair in found for clip in pair}
    for name, all_clips in zip(names, clips):
        alone = [clip for clip in all_clips if clip.path not in paired]
        if alone:
            some = ", ".join(clip.path.name for clip in alone[:5]) + (", ..." if alone[5:] else "")
            print(f"mv2: {name}: {len(alone)} of {len(all_clips)} videos have no partner and are "
                  f"left out: {some}", file=sys.stderr)  # fmt: skip


def _fill(
    folder: Path,
    names: Sequence[str],
    folders: Sequence[Path],
    found: Sequence[tuple[int, int, tuple[Clip, Clip]]],
    overlap: int,
    gold: int,
    rng: np.random.Generator,
) -> None:
    ids: dict[Path, str] = {}
    videos: list[tuple[str, int, str]] = []

    def place(clip: Clip, system: int) -> str:
        if clip.path not in ids:
            name = ids[clip.path] = secrets.token_hex(12)
            _copy(clip.path, folder / "videos" / f"{name}.mp4")
            videos.append((name, system, str(clip.path.resolve())))
        return ids[clip.path]

    shared = set(rng.permutation(len(found))[:overlap].tolist())
    comparisons = [
        (OVERLAP if number in shared else NORMAL, pair[0].prompt or pair[1].shown,
         place(pair[0], first), place(pair[1], second))
        for number, (first, second, pair) in enumerate(found)
    ]  # fmt: skip
    for number in rng.permutation(len(found))[:gold]:
        system, _, (clip, other) = found[number]
        worse = secrets.token_hex(12)
        _damage(clip.path, folder / "videos" / f"{worse}.mp4", rng)
        videos.append((worse, system, ""))
        comparisons.append((GOLD, clip.prompt or other.shown, ids[clip.path], worse))
    arena = Arena(folder / DATABASE, create=True)
    places = [str(path.resolve()) for path in folders]
    arena.fill(list(zip(names, places)), videos, comparisons)
    arena.close()


def _copy(path: Path, to: Path) -> None:
    """A video without its metadata and sound, which would tell what made it; written anew only
    where browsers would not play it."""
    try:
        with av.open(str(path)) as source:
            stream = source.streams.video[0]
            if (stream.codec.canonical_name, stream.pix_fmt) in _PLAYED:
                with av.open(str(to), "w", options={"movflags": "+faststart"}) as target:
                    copied = target.add_stream_from_template(stream)
                    copied.metadata.clear()
                    for packet in source.demux(stream):
                        if packet.dts is not None:
                            packet.stream = copied
                            target.mux(packet)
                return
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise InputError(f"cannot read {path}: {_why(error)}") from None
    frames, rate = read_frames(path)
    media.write_video(to, frames, rate)


def read_frames(path: Path) -> tuple[np.ndarray, float]:
    """All frames [T, H, W, 3] uint8 of a clip, and frames a second. Raises InputError."""
    try:
        with av.open(str(path)) as video:
            stream = video.streams.video[0]
            rate = float(stream.average_rate or 24)
            frames = [media.rgb(frame, stream) for frame in video.decode(stream)]
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise InputError(f"cannot read {path}: {_why(error)}") from None
    if not frames:
        raise InputError(f"cannot read {path}: it has no frame")
    return np.stack(frames), rate


def _damage(path: Path, to: Path, rng: np.random.Generator) -> None:
    """A copy that anybody who looks finds worse: coarse squares, and frames out of order."""
    frames, rate = read_frames(path)
    height, width = frames.shape[1:3]
    at = [np.arange(size) // _COARSE * _COARSE for size in (height, width)]
    coarse = frames[:, at[0]][:, :, at[1]]
    media.write_video(to, coarse[rng.permutation(len(coarse))], rate)


def _why(error: Exception) -> str:
    return "it is no video" if isinstance(error, IndexError) else str(error).lower()
