"""What every reader of videos here does alike: opening a file, a frame's time, which way is up."""

from __future__ import annotations

import itertools
import math
import os
from contextlib import suppress
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.sidedata.sidedata import Type

# PyAV 19 reads any title; before it refuses those that are no UTF-8, unless told.
_ANY_TITLE = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}


def opened(path: str | os.PathLike[str] | BinaryIO) -> Any:
    """A video's container, of a file or of an open one, to be closed. Raises av.FFmpegError or
    OSError.

    A title that is no UTF-8 says nothing against the pictures. Times that a container does not keep
    stay unknown: PyAV would have FFmpeg invent them, in the order of decoding (see `time_of`).
    """
    file = path if hasattr(path, "read") else address(path)
    return av.open(file, options={"fflags": "-genpts"}, **_ANY_TITLE)


def address(path: str | os.PathLike[str]) -> str:
    """A path as FFmpeg is to be told it: else what stands before a colon is a protocol to it."""
    path = os.fspath(path)
    return path if "://" in path else f"file:{path}"


def time_of(
    frame: av.VideoFrame, stream: Any, last: Fraction | None, step: Fraction
) -> Fraction | None:
    """When a decoded frame is shown, in seconds; None for a first one that nobody knows it of.

    AVI keeps one time a packet, that of decoding. A decoder gives its frames in the order they are
    shown, each with the packet that it had to wait for, so the frame's time is that packet's.

    Args:
        last: the time of the frame before, None for the first.
        step: seconds between two frames, where the frame does not say how long it lasts.
    """
    base = frame.time_base or stream.time_base
    if frame.pts is not None:
        return frame.pts * base
    waited = None if frame.dts is None else frame.dts * base
    if last is None or (waited is not None and waited > last):
        return waited
    return last + ((frame.duration or 0) * base or step)


def side_of(frame: av.VideoFrame) -> dict[Type, Any]:
    """What a decoded frame has beside its picture, by type; of several of one type the last."""
    held, found = frame.side_data, {}
    # By number: iteration gives values before PyAV 19 and types since, and the length as well.
    with suppress(IndexError):
        for i in itertools.count():
            found[held[i].type] = held[i]
    return found


def is_grey(form: av.VideoFormat) -> bool:
    """Whether a pixel format has brightness alone, which swscale takes to be in full range."""
    return form.name.startswith(("gray", "ya"))  # "ya" has an alpha channel


def turns_of(frame: av.VideoFrame) -> tuple[bool, int]:
    """What makes a decoded frame upright: whether to mirror it, then quarter turns anticlockwise.

    Mirrored is left for right, as in `upright`.
    """
    data = frame.side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return False, 0
    # [x, y] -> [a x + c y, b x + d y], y downwards, in a file's own units.
    a, b, _, c, d = (int(value) for value in np.frombuffer(data, np.int32)[:5])
    mirrored = a * d - b * c < 0
    right = (-a, -b) if mirrored else (a, b)  # where the frame's rows point to
    return mirrored, round(math.atan2(-right[1], right[0]) / (math.pi / 2)) % 4


def upright(picture: np.ndarray, mirrored: bool, turns: int) -> np.ndarray:
    """A view of [H, W, ...], mirrored and turned as `turns_of` says."""
    return np.rot90(picture[:, ::-1] if mirrored else picture, turns)
