"""The reading end of `mv2 interpolate`: any container that PyAV opens, as pictures.

A file is passed over once for its packets alone, which is quick, tells damage before any work is
done and counts what is to come; then it is decoded, one picture at a time. What FFmpeg can decode
is decoded, and what was lost on the way is counted, for the caller to say.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
from av.filter import Graph

from mv2_jax.errors import InputError
from mv2_jax.infer import frames
from mv2_jax.infer import interpolate_packets as packets
from mv2_jax.infer import interpolate_pictures as pictures
from mv2_jax.infer.interpolate_layout import Layout, layout_of
from mv2_jax.infer.interpolate_pictures import Planes

# FFmpeg's own decoders of these pass over the second stream that holds their alpha.
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


@dataclass(frozen=True)
class Picture:
    """One upright picture in its own layout, on show from `time` for `lasts` seconds (0 where
    nobody says). `repeats` are the times of pictures left out after it, which were the same."""

    planes: Planes
    layout: Layout
    time: Fraction
    lasts: Fraction
    repeats: tuple[Fraction, ...] = ()


@dataclass
class Lost:
    """What reading had to do without, or to change; see `lines`."""

    late: int = 0
    damaged: int = 0
    scaled: dict[str, int] = field(default_factory=dict)
    deinterlaced: int = 0

    def lines(self, path: str) -> Iterator[str]:
        """What a person is to know."""
        if self.late:
            yield f"{self.late} frames are left out: their times are no later than those before"
        if self.damaged:
            yield f"{path}: {self.damaged} frames are damaged; they are used as FFmpeg decodes them"
        for what, count in self.scaled.items():
            yield f"{count} frames {what} are scaled to the size of the first"
        if self.deinterlaced:
            yield f"{self.deinterlaced} interlaced frames were deinterlaced (bwdif)"


class Source:
    """An open video file. Make it with `opened`; read `pictures` once.

    `stream` is its video (a cover picture is not one). `layout` is the first picture's, known once
    that is read; `lost` counts what was passed over so far. With `strict`, what would be counted
    there as damage or as another size is an error.
    """

    def __init__(self, path: str, container: Any, survey: packets.Survey, strict: bool = False):
        self._set_up(path, survey, strict)
        self.container = container
        self.stream = packets.video_of(path, container)
        self.stream.thread_type = "AUTO"
        self.base: Fraction = self.stream.time_base
        self.aspect = Fraction(self.stream.sample_aspect_ratio or 1)

    def _set_up(self, path: str, survey: packets.Survey, strict: bool) -> None:
        self.path, self.survey, self.strict = path, survey, strict
        self.location = survey.location
        self.layout: Layout | None = None
        self.side: dict[Any, bytes] = {}  # of the first frame: HDR's numbers
        self.lost = Lost()
        self._size: tuple[int, int] | None = None
        self._before: Fraction | None = None

    def pictures(self, start: Fraction = Fraction(0)) -> Iterator[Picture]:
        """Pictures in the order of their times, from the one on show `start` seconds in.

        Raises:
            InputError: nothing can be decoded; or strict, and something is damaged or changes.
        """
        with packets.told(self.path):
            wanted = self.survey.start + start
            if start:
                self._seek(wanted)
            held: Picture | None = None
            for frame in self._frames():
                picture = self._picture(frame)
                if picture is None:
                    continue
                # The picture on show at the start may begin before it.
                if picture.time <= wanted and start:
                    held = picture
                    continue
                if held is not None:
                    yield held
                    held = None
                yield picture
            if held is not None:
                yield held
        if self._before is None:
            raise InputError(f"cannot read {self.path}: the video has no frames")

    def _seek(self, time: Fraction) -> None:
        try:
            self.container.seek(int(time / self.base), stream=self.stream)
        except (av.error.FFmpegError, OverflowError):
            self.container.seek(0)

    def _frames(self) -> Iterator[av.VideoFrame]:
        """Decoded frames, those of interlaced video deinterlaced."""
        decode, weave = _decoder(self.stream), None
        for packet in packets.joined(self.container):
            if packet.stream.index != self.stream.index:
                continue
            try:
                decoded = decode(packet)
            except (av.error.InvalidDataError, av.error.PatchWelcomeError):
                self._damaged("a packet cannot be decoded", packet.pts)
                continue
            for frame in decoded:
                if self.survey.interlaced and frame.interlaced_frame and weave is None:
                    weave = _Deinterlacer(self.stream)
                if weave is None:
                    yield frame
                else:
                    self.lost.deinterlaced += frame.interlaced_frame
                    yield from weave(frame)
        if weave is not None:
            yield from weave(None)

    def _damaged(self, what: str, stamp: int | None) -> None:
        self.lost.damaged += 1
        if self.strict:
            at = float((stamp or 0) * self.base - self.survey.start)
            raise InputError(f"{self.path}: at {at:.2f} s the video is damaged: {what}")

    def _picture(self, frame: av.VideoFrame) -> Picture | None:
        time = frames.time_of(frame, self.stream, self._before, 1 / self.survey.rate)
        time = self.survey.start if time is None else time
        lasts = Fraction(frame.duration or 0) * (frame.time_base or self.base)
        if frame.is_corrupt:
            self._damaged("parts of a frame are lost", frame.pts)
        size = (frame.width, frame.height)
        if self._size is None:
            self._size, self.layout = size, layout_of(frame)
            self.side = {kind: bytes(data) for kind, data in frames.side_of(frame).items()}
        elif size != self._size:
            frame = self._scaled(frame, time)
        # A picture that is not later than the one before it would never be on show.
        if self._before is not None and time <= self._before:
            self.lost.late += 1
            return None
        self._before = time
        layout = layout_of(frame)
        return Picture(pictures.read(frame, layout), layout, time, lasts)

    def _scaled(self, frame: av.VideoFrame, time: Fraction) -> av.VideoFrame:
        """A frame of another size than the first's, in that size."""
        (width, height), old = self._size, f"{frame.width}x{frame.height}"
        if self.strict:
            at = float(time - self.survey.start)
            raise InputError(
                f"{self.path}: at {at:.2f} s the picture changes from {width}x{height} to {old}"
            )
        self.lost.scaled[f"of {old}"] = self.lost.scaled.get(f"of {old}", 0) + 1
        new = frame.reformat(width=width, height=height, interpolation="LANCZOS", threads=1)
        new.pts, new.time_base = frame.pts, frame.time_base
        return new


def _decoder(stream: Any) -> Any:
    """A function from packets to frames; the alpha of VP8 and VP9 among what it decodes."""
    name = _WITH_ALPHA.get(stream.codec_context.name)
    if stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return lambda packet: packet.decode()
    context = av.CodecContext.create(name, "r")
    context.extradata = stream.codec_context.extradata

    def decode(packet: av.Packet) -> list[av.VideoFrame]:
        made = context.decode(packet if packet.size else None)
        for frame in made:
            frame.time_base = stream.time_base
        return made

    return decode


class _Deinterlacer:
    """FFmpeg's bwdif: a whole frame for every interlaced one; others pass as they are."""

    def __init__(self, stream: Any):
        self._base = stream.time_base
        self._graph: Graph | None = None

    def __call__(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        if self._graph is None:
            self._graph = graph = Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=self._base
            )
            weave = graph.add("bwdif", "mode=send_frame:deint=interlaced")
            graph.link_nodes(source, weave, graph.add("buffersink")).configure()
        self._graph.vpush(frame)
        while True:
            try:
                made = self._graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            yield made


@contextmanager
def opened(path: str | os.PathLike[str], strict: bool = False) -> Iterator[Source]:
    """A `Source`, surveyed and then opened.

    Raises:
        InputError: no such file, not a video; and `strict`, damaged, or cut short.
    """
    path = os.fspath(path)
    known = packets.survey(path)
    if strict and known.faults:
        raise InputError(f"cannot read {path}: {' and '.join(known.faults)}")
    with packets.told(path):
        container = frames.opened(path)
    with container:
        yield Source(path, container, known, strict)
