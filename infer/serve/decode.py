"""Looks into a file that somebody uploaded, in a process of its own:

    python -m mv2_jax.infer.serve.decode FILE FOLDER SIDE SECONDS

A picture is decoded and written anew as `picture.png`, so that the worker reads no bytes of
strangers; a clip is decoded once from end to end, and moved to `clip.mp4` (or .mkv and so on). What
it is stands on standard output as JSON, or the reason why it is refused.

The process has little memory and time (`LIMITS`), and no name in the file chooses a decoder: the
first bytes do, from a short list. FFmpeg's playlists, which name further files, are not on it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

from mv2_jax.errors import InputError

MEMORY = 3 << 30  # bytes of address space
CPU = 120  # seconds of all threads
WAIT = 60.0  # seconds on the clock
PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # as Pillow names them


def look(path: Path, folder: Path, side: int, seconds: float) -> dict[str, Any]:
    """Looks into an uploaded file, with the limits; what it is.

    Args:
        folder: where the picture or clip is to lie.
        side: pixels along a side, at most.
        seconds: of a clip, at most.

    Returns:
        kind ("picture" or "clip"), file, width, height, and of a clip frames and seconds.

    Raises:
        InputError: it is neither, is damaged, or is too large; one line says which.
    """
    command = [sys.executable, "-m", __spec__.name, str(path), str(folder), str(side), str(seconds)]
    one = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=WAIT,
            env={**os.environ, **one},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"the file takes longer than {WAIT:g} s to decode") from None
    try:
        told = json.loads(done.stdout)
    except ValueError:
        raise InputError("the file could not be decoded: its decoder ran out of memory or time, or "
                         "crashed") from None  # fmt: skip
    if "refused" in told:
        raise InputError(told["refused"])
    return told


def main(arguments: list[str]) -> int:
    """The process: prints what the file is, or why it is refused."""
    path, folder, side, seconds = arguments
    _limit()
    try:
        told = _seen(Path(path), Path(folder), int(side), float(seconds))
    except InputError as error:
        told = {"refused": str(error).replace(f"cannot read {path}: ", "").replace(path, "file")}
    except MemoryError:
        told = {"refused": "the file takes too much memory to decode"}
    print(json.dumps(told))
    return 0


def _limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # macOS does not keep to it
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _seen(path: Path, folder: Path, side: int, seconds: float) -> dict[str, Any]:
    with open(path, "rb") as file:
        head = file.read(16)
    if not head:
        raise InputError("the file is empty")
    suffix = _clip_suffix(head)
    if suffix and not (head.startswith(b"GIF8") and not _moves(path)):
        return _clip(path, folder / f"clip{suffix}", side, seconds)
    return _picture(path, folder / "picture.png", side)


def _clip_suffix(head: bytes) -> str | None:
    """The suffix of a video container that is taken, by its first bytes."""
    if head[4:8] == b"ftyp":
        return ".mp4"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return ".mkv"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return ".avi"
    return ".gif" if head.startswith(b"GIF8") else None


def _moves(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path, formats=("GIF",)) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # its picture says it better
        return False


def _picture(path: Path, out: Path, side: int) -> dict[str, Any]:
    from PIL import Image, UnidentifiedImageError

    from mv2_jax.infer import media

    try:
        with Image.open(path, formats=PICTURES) as image:
            _small_enough(image.width, image.height, side)
    except UnidentifiedImageError:
        raise InputError("the file is neither a picture (PNG, JPEG, WebP, GIF, BMP, TIFF) nor a "
                         "clip (MP4, MOV, WebM, MKV, AVI, GIF)") from None  # fmt: skip
    except Image.DecompressionBombError:
        raise InputError(f"the picture is too large; {side} pixels a side are the most") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("the picture is damaged") from None
    pixels = media.read_image(path)
    media.write_image(out, pixels)
    height, width = pixels.shape[:2]
    return {"kind": "picture", "file": out.name, "width": width, "height": height}


def _clip(path: Path, out: Path, side: int, seconds: float) -> dict[str, Any]:
    import av

    from mv2_jax.infer import frames

    count, first, last = 0, None, Fraction(0)
    try:
        with frames.opened(path) as container:
            if not container.streams.video:
                raise InputError("there is no video in the file")
            stream = container.streams.video[0]
            _small_enough(stream.width or 1, stream.height or 1, side)
            stream.thread_count = 1
            step = 1 / Fraction(stream.average_rate or stream.guessed_rate or 25)
            for frame in container.decode(stream):
                _small_enough(frame.width, frame.height, side)
                if frame.is_corrupt:
                    raise InputError("the clip is damaged")
                last = frames.time_of(frame, stream, last if count else None, step) or last
                first, count = (last if first is None else first), count + 1
                if count * step > seconds or last - first > seconds:
                    raise InputError(f"the clip is longer than {seconds:g} s")
            if not count:
                raise InputError("the clip has no frames")
            if count < stream.frames:
                raise InputError("the clip is damaged or cut short")
            size = frame.width, frame.height
    except (av.FFmpegError, OSError):
        raise InputError("the file is no clip that can be decoded, or is damaged") from None
    path.rename(out)
    return {
        "kind": "clip",
        "file": out.name,
        "width": size[0],
        "height": size[1],
        "frames": count,
        "seconds": round(float(last - (first or 0) + step), 3),
    }


def _small_enough(width: int, height: int, side: int) -> None:
    if max(width, height) > side:
        raise InputError(f"{width}x{height} pixels are too many; {side} a side are the most")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
