"""What a file shows: how large and long it is, and frames of it at given times."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

from mv2_jax.errors import InputError
from mv2_jax.infer import frames as video_frames
from mv2_jax.infer import media
from mv2_jax.train.media.records import Content, Frames

GRACE = 5e-4  # seconds: rounded time stamps must not show the frame before
NEAR = 1.0  # seconds from the start below which seeking costs more than it saves


@dataclass(frozen=True)
class Info:
    """A picture (`frames` 1, no `fps`) or a video: upright pixels, and the time of its last frame.

    `seconds` is counted from the first frame.
    """

    height: int
    width: int
    frames: int = 1
    fps: float = 0.0
    seconds: float = 0.0

    @property
    def still(self) -> bool:
        return self.frames == 1


def probe(content: Content) -> Info:
    """What a file is. A video's first frame is decoded.

    Raises:
        InputError: it is neither a picture nor a video that can be read; the message is the
            reason alone.
    """
    if isinstance(content, Frames):
        count, height, width = content.pixels.shape[:3]
        return Info(height, width, count, content.fps, (count - 1) / (content.fps or 1))
    picture = _picture_size(content)
    if picture:
        return Info(*picture)
    try:
        with video_frames.opened(_file(content)) as container:
            stream = _stream(container)
            first = next(container.decode(stream), None)
            if first is None or first.is_corrupt:
                raise InputError("the video has no frames that can be decoded")
            height, width = media.rgb(first, stream).shape[:2]
            fps = float(stream.average_rate or stream.guessed_rate or 25)
            seconds = _seconds(container, stream, fps)
    except InputError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(_reason(error)) from None
    _check((height, width))
    count = stream.frames or round(seconds * fps)
    if count == 1:
        return Info(height, width)
    return Info(height, width, count, fps, max(0.0, seconds - 1 / fps))


def take(content: Content, times: Sequence[float]) -> list[np.ndarray]:
    """The frames on show at ascending times, in seconds from the first frame, uint8 [H, W, 3].

    Raises:
        InputError: the file cannot be read, is damaged, or ends before; the message is the reason.
    """
    if isinstance(content, Frames):
        last = len(content.pixels) - 1
        places = [min(last, int((time + GRACE) * content.fps)) for time in times]
        return [content.pixels[place] for place in places]
    if _picture_size(content):
        try:
            pixels = media.read_image(_file(content))
        except InputError as error:
            raise InputError(str(error).rpartition(": ")[2]) from None
        return [pixels] * len(times)
    try:
        found = _taken(content, times, seek=times[0] > NEAR)
        return _taken(content, times, seek=False) if found is None else found
    except InputError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(_reason(error)) from None


def cover(
    pixels: np.ndarray, size: tuple[int, int], at: tuple[float, float], flip: bool = False
) -> tuple[np.ndarray, tuple[int, int]]:
    """Mirrors a picture, scales it to cover `size` (Lanczos) and cuts `size` out of it.

    Args:
        pixels: uint8 [H, W, 3].
        at: where the cut lies, from 0 (top, left) to 1; 0.5 is the middle.

    Returns:
        uint8 [size[0], size[1], 3], and the cut's (top, left) in the scaled picture.
    """
    pixels = pixels[:, ::-1] if flip else pixels
    scale = max(size[0] / pixels.shape[0], size[1] / pixels.shape[1])
    scaled = [max(side, round(old * scale)) for side, old in zip(size, pixels.shape)]
    top, left = (round(where * (long - side)) for where, long, side in zip(at, scaled, size))
    if tuple(scaled) == pixels.shape[:2]:
        cut = pixels[top : top + size[0], left : left + size[1]]
        return np.ascontiguousarray(cut), (top, left)
    down, right = scaled[0] / pixels.shape[0], scaled[1] / pixels.shape[1]
    box = (left / right, top / down, (left + size[1]) / right, (top + size[0]) / down)
    box = (*box[:2], min(box[2], pixels.shape[1]), min(box[3], pixels.shape[0]))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    made = image.resize(size[::-1], Image.Resampling.LANCZOS, box=box)
    return np.asarray(made), (top, left)


def _file(content: Any) -> Any:
    """What Pillow and PyAV open: a path, or a file at its beginning."""
    if hasattr(content, "seek"):
        content.seek(0)
    return io.BytesIO(content) if isinstance(content, bytes) else content


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise InputError("there is no video in it")
    stream = container.streams.video[0]
    # One thread: samples are decoded side by side, each by a thread of its own.
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    return stream


def _picture_size(content: str | bytes) -> tuple[int, int] | None:
    """(height, width) of an upright picture file, from its header; None for anything else."""
    try:
        with Image.open(_file(content)) as image:
            if getattr(image, "n_frames", 1) > 1:
                return None  # an animation is a video
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    size = (width, height) if turned else (height, width)
    _check(size)
    return size


def _check(size: tuple[int, int]) -> None:
    if min(size) < media.SMALLEST:
        raise InputError(f"{size[1]}x{size[0]} pixels are too small")


def _seconds(container: Any, stream: Any, fps: float) -> float:
    """How long a video is, by its stream, its file, or its frames counted."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if container.duration:
        return container.duration / av.time_base
    return (1 + sum(1 for _ in container.decode(stream))) / fps


def _taken(content: str | bytes, times: Sequence[float], seek: bool) -> list[np.ndarray] | None:
    """`take` for videos; None where seeking went too far."""
    wanted, found = list(times), []
    with video_frames.opened(_file(content)) as container:
        stream = _stream(container)
        step = 1 / Fraction(stream.average_rate or stream.guessed_rate or 25)
        first = None if stream.start_time is None else stream.start_time * stream.time_base
        if seek and first is None:
            return None
        if seek:
            with suppress(av.FFmpegError):  # where a file cannot be sought in, it is read up to it
                container.seek(int((float(first) + wanted[0]) / stream.time_base), stream=stream)
        now, before = None, None
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise InputError("the video is damaged")
            now = video_frames.time_of(frame, stream, now, step) or Fraction(0)
            first = now if first is None else first
            if before is None and float(now - first) > wanted[0] + GRACE and seek:
                return None
            while before is not None and wanted and float(now - first) > wanted[0] + GRACE:
                wanted.pop(0)
                found.append(_once(before, stream))
            if not wanted:
                return found
            before = frame
        if before is None:
            raise InputError("the video has no frames that can be decoded")
        if wanted[-1] > float(now - first) + 2 * float(step) + GRACE:
            raise InputError("the video ends before it says")
        return found + [_once(before, stream)] * len(wanted)


def _once(frame: av.VideoFrame, stream: Any) -> np.ndarray:
    return media.rgb(frame, stream)


def _reason(error: Exception) -> str:
    known = isinstance(error, (FileNotFoundError, PermissionError))
    return error.strerror.lower() if known and error.strerror else "it is damaged, or no video"
