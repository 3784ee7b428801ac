"""A video file's packets: one clock for all of them, and what they tell before any is decoded."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.bitstream import BitStreamFilterContext

from mv2_jax import files
from mv2_jax.errors import InputError
from mv2_jax.infer import frames

# Text files have the names of FFmpeg's "video" of typewriters; nobody means that.
_NOT_VIDEO = {"tty"}
_HONEST = {"matroska,webm"}  # containers whose length is written in them, not guessed
_SLACK = Fraction(1, 2)  # seconds that a file's own word on its length may be wrong by
_PLACES = ("left", "center", "topleft", "top", "bottomleft", "bottom")  # in the standards' order


@dataclass(frozen=True)
class Survey:
    """What the packets say: how many pictures, the first's time in seconds, and the pace.

    `rate` is the average in pictures a second; `start` is the file's, the audio's included, as is
    `length`; `location` where chroma samples lie; `faults` what is wrong, for a person.
    """

    count: int
    start: Fraction
    rate: Fraction
    length: Fraction = Fraction(0)
    interlaced: bool = False
    location: str | None = None
    faults: tuple[str, ...] = ()


def joined(container: Any) -> Iterator[av.Packet]:
    """All packets of a file, on one clock: transport streams that were joined to one file begin
    anew in the middle, and what follows is put behind what was before.

    A file that cannot be read to its end stops where it cannot.
    """
    breaks = container.format.name in ("mpegts", "mpeg", "flv")
    shift, due = Fraction(0), {}
    packets = container.demux()
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.InvalidDataError, av.error.EOFError):
            return
        stamp = packet.pts if packet.dts is None else packet.dts
        if packet.size and breaks and stamp is not None:
            base, index = packet.time_base, packet.stream.index
            time = stamp * base + shift
            step = Fraction(packet.duration or 0) * base
            if index in due and not -Fraction(1, 10) <= time - due[index] <= 10:
                shift += due[index] - time
                time = due[index]
            due[index] = time + step
            ticks = round(shift / base)
            if packet.pts is not None:
                packet.pts += ticks
            if packet.dts is not None:
                packet.dts += ticks
        yield packet


def survey(path: str) -> Survey:
    """Passes over a file's packets; memory does not grow with their number. Raises as `opened`."""
    with told(path):
        if "://" not in path:
            files.regular(path)  # a pipe can be read once, and a device has no end
        container = frames.opened(path)
    with told(path), container:
        stream = video_of(path, container)
        found, faults = _packets(container, stream), []
        if not found.shown:
            raise InputError(f"cannot read {path}: the video has no frames")
        if found.corrupt:
            faults.append(f"{found.corrupt} packets are damaged")
        rate = stream.average_rate or stream.guessed_rate
        if not rate or not 0 < rate <= 1000:
            rate = (found.shown - 1) / found.span if found.span else Fraction(25)
        # What a file says of itself is 0 or None where its format says nothing. One that an edit
        # list shortens has fewer packets than it says, but not less time.
        promised = Fraction(stream.duration or 0) * stream.time_base
        short = found.all < stream.frames and found.span + 1 / Fraction(rate) + _SLACK < promised
        whole = Fraction(container.duration or 0, av.time_base)
        if container.format.name in _HONEST and found.ends + _SLACK < whole:
            short, promised = True, whole
        if short:
            faults.append(f"it is cut short, {float(found.ends):.1f} s of {float(promised):.1f}")
        start = Fraction(container.start_time or 0, av.time_base)
        fields = getattr(stream.codec_context, "field_order", 0)
        place = chroma_location(path, stream.index)
        length = found.ends - start
        woven = int(fields) > 1
        return Survey(found.shown, start, Fraction(rate), length, woven, place, tuple(faults))


@dataclass
class _Packets:
    """A stream's packets, of them those on show and those damaged, seconds from its first to its
    last, and the second at which the last packet of any stream ends."""

    all: int = 0
    shown: int = 0
    corrupt: int = 0
    span: Fraction = Fraction(0)
    ends: Fraction = Fraction(0)


def _packets(container: Any, stream: Any) -> _Packets:
    found, first = _Packets(), None
    for packet in joined(container):
        if packet.size == 0:
            continue
        stamp = stamp_of(packet)
        time = None if stamp is None else stamp * packet.time_base
        if time is not None:
            found.ends = max(found.ends, time + (packet.duration or 0) * packet.time_base)
        if packet.stream.index != stream.index:
            continue
        found.corrupt += packet.is_corrupt
        found.all += 1
        found.shown += not packet.is_discard
        if time is not None:
            first = time if first is None else min(first, time)
            found.span = max(found.span, time - first)
    return found


def chroma_location(path: str, index: int) -> str | None:
    """Where chroma samples of a stream lie, as FFmpeg calls it (left, topleft ...), None where it
    does not say. PyAV has no name for it; FFmpeg's trace of the stream's headers has."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        with frames.opened(path) as container, av.logging.Capture() as logs:
            stream = container.streams[index]
            trace = BitStreamFilterContext("trace_headers", stream)
            trace.filter(next(container.demux(stream)))
    except (ValueError, StopIteration, av.error.FFmpegError):
        return None
    finally:
        av.logging.set_level(level)
    for _, _, line in logs:
        found = re.search(r"chroma_sample_loc_type_top_field.* = (\d)", line)
        if found and int(found[1]) < len(_PLACES):
            return _PLACES[int(found[1])]
    return None


def stamp_of(packet: av.Packet) -> int | None:
    """When a packet is due, in its own ticks, as far as the file says."""
    return packet.dts if packet.pts is None else packet.pts


def video_of(path: str, container: Any) -> Any:
    """The first video stream that is not a cover picture.

    Raises:
        InputError: there is none.
    """
    if container.format.name not in _NOT_VIDEO:
        for stream in container.streams.video:
            if not stream.disposition & stream.disposition.attached_pic:
                return stream
    raise InputError(f"cannot read {path}: there is no video in it")


@contextmanager
def told(path: str) -> Iterator[None]:
    """FFmpeg's errors as one line for a person."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise InputError(f"cannot read {path}: {os.strerror(error.errno).lower()}") from None
    except (av.error.FFmpegError, OSError) as error:
        if error.errno == errno.EINVAL and not isinstance(error, av.error.FFmpegError):
            raise InputError(f"cannot read {path}: {error.strerror}") from None
        raise InputError(f"cannot read {path}: it is no video, or is damaged") from None
