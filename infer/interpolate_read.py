"""The reading end of `mv2 interpolate`: any container that PyAV opens, as pictures and packets.

A file is passed over once for its packets alone, which is quick, finds most damage before any work
is done and counts what is to come; then it is decoded, one picture at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av

from mv2_jax.errors import InputError
from mv2_jax.infer import frames
from mv2_jax.infer import interpolate_pictures as pictures
from mv2_jax.infer.interpolate_pictures import Layout, Planes

# Text files have the names of FFmpeg's "video" of typewriters; nobody means that.
_NOT_VIDEO = {"tty"}
_HONEST = {"matroska,webm"}  # containers whose length is written in them, not guessed
_SLACK = Fraction(1, 2)  # seconds that a file's own word on its length may be wrong by


@dataclass(frozen=True)
class Picture:
    """One upright picture, on show from `time` for `lasts` seconds (0 where nobody says)."""

    planes: Planes
    time: Fraction
    lasts: Fraction


@dataclass(frozen=True)
class Survey:
    """What the packets say: how many pictures, the first's time in seconds, and the pace.

    `rate` is the average in pictures a second; `start` is the file's, the audio's included.
    """

    count: int
    start: Fraction
    rate: Fraction
    interlaced: bool


class Source:
    """An open video file. Make it with `opened`; read `events` once.

    `stream` is its video (a cover picture is not one), `sounds` are its audio streams, `unheard` is
    how many more it has, which FFmpeg has no decoder for. `layout` is known once the first picture
    is; `lost` counts the pictures passed over so far, which are no later than those before them.
    """

    def __init__(self, path: str, container: Any, survey: Survey):
        self.path, self.survey = path, survey
        self.container = container
        self.stream = video_of(path, container)
        self.stream.thread_type = "AUTO"
        # PyAV cannot copy what FFmpeg has no decoder for.
        self.sounds = [s for s in container.streams.audio if s.codec_context is not None]
        self.unheard = len(container.streams.audio) - len(self.sounds)
        self.layout: Layout | None = None
        self.lost = 0
        self._size: tuple[int, int, str] | None = None
        self._before: Fraction | None = None

    def events(self) -> Iterator[Picture | av.Packet]:
        """Pictures in the order of their times, and packets of the audio, as they lie in the file.

        Raises:
            InputError: the file is damaged, or changes its size in the middle.
        """
        with _told(self.path):
            for packet in self.container.demux(self.stream, *self.sounds):
                if packet.stream.index != self.stream.index:
                    if packet.size and _stamp(packet) is not None:
                        yield packet
                    continue
                for frame in packet.decode():
                    picture = self._picture(frame)
                    if picture is not None:
                        yield picture
        if self._before is None:
            raise InputError(f"cannot read {self.path}: the video has no frames")

    def _picture(self, frame: av.VideoFrame) -> Picture | None:
        time = frames.time_of(frame, self.stream, self._before, 1 / self.survey.rate)
        time = self.survey.start if time is None else time
        lasts = Fraction(frame.duration or 0) * (frame.time_base or self.stream.time_base)
        where = f"{self.path}: at {float(time - self.survey.start):.2f} s"
        if frame.is_corrupt:
            raise InputError(f"{where} the video is damaged")
        size = (frame.width, frame.height, frame.format.name)
        if self.layout is None:
            self._size, self.layout = size, pictures.layout_of(frame)
        elif size != self._size:
            old, new = (f"{w}x{h} {form}" for w, h, form in (self._size, size))
            raise InputError(f"{where} the picture changes from {old} to {new}; cut it there first")
        # A picture that is not later than the one before it would never be on show.
        if self._before is not None and time <= self._before:
            self.lost += 1
            return None
        self._before = time
        return Picture(pictures.read(frame, self.layout), time, lasts)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Source]:
    """A `Source`, surveyed and then opened.

    Raises:
        InputError: no such file, not a video, damaged, or cut short.
    """
    path = os.fspath(path)
    found = survey(path)
    with _told(path):
        container = frames.opened(path)
    with container:
        yield Source(path, container, found)


def survey(path: str) -> Survey:
    """Passes over a file's packets; memory does not grow with their number. Raises as `opened`."""
    with _told(path), frames.opened(path) as container:
        stream = video_of(path, container)
        found = _packets(container, stream)
        if found is None:
            raise InputError(f"cannot read {path}: the video is damaged or cut short")
        if not found.shown:
            raise InputError(f"cannot read {path}: the video has no frames")
        rate = stream.average_rate or stream.guessed_rate
        if not rate or not 0 < rate <= 1000:
            rate = (found.shown - 1) / found.span if found.span else Fraction(25)
        # What a file says of itself is 0 or None where its format says nothing. One that an edit
        # list shortens has fewer packets than it says, but not less time.
        promised = Fraction(stream.duration or 0) * stream.time_base
        short = found.all < stream.frames and found.span + 1 / Fraction(rate) + _SLACK < promised
        if container.format.name in _HONEST:
            short |= found.ends + _SLACK < Fraction(container.duration or 0, av.time_base)
        if short:
            raise InputError(f"cannot read {path}: the video is damaged or cut short")
        start = Fraction(container.start_time or 0, av.time_base)
        fields = getattr(stream.codec_context, "field_order", 0)
        return Survey(found.shown, start, Fraction(rate), int(fields) > 1)


@dataclass
class _Packets:
    """A stream's packets, of them those on show, seconds from its first to its last, and the
    second at which the last packet of any stream ends."""

    all: int = 0
    shown: int = 0
    span: Fraction = Fraction(0)
    ends: Fraction = Fraction(0)


def _packets(container: Any, stream: Any) -> _Packets | None:
    """Counts; None where a packet is damaged."""
    found, first = _Packets(), None
    for packet in container.demux():
        if packet.size == 0:
            continue
        stamp = _stamp(packet)
        time = None if stamp is None else stamp * packet.time_base
        if time is not None:
            found.ends = max(found.ends, time + (packet.duration or 0) * packet.time_base)
        if packet.stream.index != stream.index:
            continue
        if packet.is_corrupt:
            return None
        found.all += 1
        found.shown += not packet.is_discard
        if time is not None:
            first = time if first is None else min(first, time)
            found.span = max(found.span, time - first)
    return found


def _stamp(packet: av.Packet) -> int | None:
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
def _told(path: str) -> Iterator[None]:
    """FFmpeg's errors as one line for a person."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise InputError(f"cannot read {path}: {os.strerror(error.errno).lower()}") from None
    except (av.error.FFmpegError, OSError):
        raise InputError(f"cannot read {path}: it is no video, or is damaged") from None
