"""The writing end of `mv2 interpolate`: when each picture is shown, the encoder, the audio's copy.

Times are exact fractions of seconds from the file's start up to the moment they become ticks of the
output's clock, which is chosen so that they fall on whole ticks.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from mv2_jax import files
from mv2_jax.config import nearest
from mv2_jax.errors import InputError
from mv2_jax.infer import frames
from mv2_jax.infer import interpolate_pictures as pictures
from mv2_jax.infer.interpolate_pictures import Layout, Planes
from mv2_jax.infer.interpolate_read import Source

_FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}
SUFFIXES = tuple(_FORMATS)
# A clock's ticks a second, at most: containers keep them in 31 bits, and MP4 multiplies small ones.
_FINEST, _COMMON = 2**24, 90_000

Moment = tuple[Fraction, float]
"""(seconds, where in the gap: 0 the first picture, 1 the second)."""


@dataclass(frozen=True)
class Multiply:
    """`times` pictures for every one, evenly spaced in each gap, however long it is."""

    times: int

    def rate(self, rate: Fraction) -> Fraction:
        """Pictures a second, for a source's."""
        return rate * self.times

    def between(self, first: Fraction, second: Fraction) -> list[Moment]:
        """The moments from the first picture, it included, to the second."""
        gap = second - first
        return [(first + gap * k / self.times, k / self.times) for k in range(self.times)]

    def after(self, last: Fraction, lasts: Fraction) -> list[Moment]:
        """The moments from the last picture on."""
        return [(last, 0.0)]

    def clock(self, base: Fraction) -> Fraction:
        """Seconds of a tick of the output, for a source's."""
        tick = base / self.times
        return tick if tick.denominator <= _FINEST else Fraction(1, _COMMON)


@dataclass(frozen=True)
class Even:
    """`fps` pictures a second, whatever the source's pace; nothing earlier than its first.

    A moment within a hundredth of a gap from a picture is that picture's: time stamps are rounded,
    and a picture as it was is better than one made anew.
    """

    fps: Fraction
    start: Fraction

    def rate(self, rate: Fraction) -> Fraction:
        return self.fps

    def between(self, first: Fraction, second: Fraction) -> list[Moment]:
        gap, made = second - first, []
        for moment in self._within(first, second):
            part = float((moment - first) / gap)
            made.append((moment, 0.0 if part < 0.01 else 1.0 if part > 0.99 else part))
        return made

    def after(self, last: Fraction, lasts: Fraction) -> list[Moment]:
        # Where nobody says how long the last picture lasts, it is there once.
        ends = last + (lasts or 1 / self.fps)
        return [(moment, 0.0) for moment in self._within(last, ends)]

    def clock(self, base: Fraction) -> Fraction:
        ticks = math.lcm(self.fps.numerator, _COMMON)  # the common ones serve the first picture
        return Fraction(1, ticks if ticks <= _FINEST else _COMMON)

    def _within(self, first: Fraction, second: Fraction) -> Iterator[Fraction]:
        k = math.ceil((first - self.start) * self.fps)
        while (moment := self.start + k / self.fps) < second:
            yield moment
            k += 1


class Target:
    """An open file being written. Make it with `writing`."""

    def __init__(self, container: Any, source: Source, timing: Multiply | Even, crf: int):
        self.container, self._timing = container, timing
        # Only a start later than zero is moved to zero: what is negative is a codec's run-up.
        self._origin = max(source.survey.start, Fraction(0))
        self._clock = timing.clock(source.stream.time_base)
        self._last = -1
        self._lasts: dict[int, int] = {}  # by ticks, of the pictures inside the encoder
        self._stream = self._video(source, crf)
        self._sounds = {s.index: container.add_stream_from_template(s) for s in source.sounds}
        self._heard: dict[int, int] = {}  # the last packet's time of decoding, by stream
        self._matroska = container.format.name == "matroska"
        for sound in source.sounds:
            self._sounds[sound.index].metadata.update(sound.metadata)  # its language, its title
        container.metadata.update(source.container.metadata)

    def picture(
        self, planes: Planes, layout: Layout, time: Fraction, lasts: Fraction = Fraction(0)
    ) -> None:
        """Encodes a picture to be shown from `time` on, in the source's seconds.

        `lasts` matters for the last one: what follows tells of the others.
        """
        ticks = max(round((time - self._origin) / self._clock), self._last + 1)
        self._last = ticks
        frame = pictures.write(planes, layout)
        frame.pts, frame.time_base = ticks, self._clock
        self._lasts[ticks] = round(lasts / self._clock)
        self._mux(self._stream.encode(frame))

    def sound(self, packet: av.Packet) -> None:
        """Copies a packet of audio, as it is. A time no later than the last one's is moved on."""
        # What an edit list cuts away primes the decoder; Matroska cannot say so, and would play it.
        if packet.is_discard and self._matroska:
            return
        stream = self._sounds[packet.stream.index]
        shown = packet.dts if packet.pts is None else packet.pts
        due = shown if packet.dts is None else packet.dts
        shown, due = (
            round((ticks * packet.time_base - self._origin) / stream.time_base)
            for ticks in (shown, due)
        )
        # Matroska takes equal times, and has some: its ticks may be longer than a packet.
        least = self._heard.get(stream.index, due - 1) + (0 if self._matroska else 1)
        self._heard[stream.index] = due = max(due, least)
        packet.pts, packet.dts = max(shown, due), due
        packet.duration = round(packet.duration * packet.time_base / stream.time_base)
        packet.time_base = stream.time_base
        packet.stream = stream
        self.container.mux(packet)

    def finish(self) -> None:
        """Empties the encoder."""
        self._mux(self._stream.encode())

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            # The encoder forgets how long a picture lasts.
            packet.duration = self._lasts.pop(packet.pts, 0) or packet.duration
            self.container.mux(packet)

    def _video(self, source: Source, crf: int) -> Any:
        layout = source.layout
        rate = self._timing.rate(source.survey.rate).limit_denominator(1001)
        stream = self.container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = layout.width, layout.height, layout.format
        # With 10 bits, x264 takes crf 0 for merely very good.
        quality = {"crf": str(crf)} if crf else {"qp": "0"}
        stream.options = {**quality, "preset": "medium"}
        context = stream.codec_context
        context.time_base = self._clock
        context.color_range, context.colorspace = layout.range, layout.matrix
        context.color_primaries, context.color_trc = layout.primaries, layout.transfer
        aspect = Fraction(source.stream.sample_aspect_ratio or 1)
        if aspect > 0:
            context.sample_aspect_ratio = 1 / aspect if layout.turns % 2 else aspect
        return stream


@contextmanager
def writing(
    path: str | os.PathLike[str], source: Source, timing: Multiply | Even, crf: int
) -> Iterator[Target]:
    """A `Target` that becomes the file `path` once the block succeeds, and nothing otherwise.

    The source's first picture must have been read.

    Raises:
        InputError: the container cannot hold the source's audio; the message says which could.
        OSError: the file cannot be written.
    """
    _check_sound(path, source.sounds)
    mp4 = Path(path).suffix.lower() in (".mp4", ".mov")
    options = {"movflags": "+faststart"} if mp4 else {}
    try:
        with (
            files.whole(path) as scratch,
            av.open(frames.address(scratch), "w", options=options) as out,
        ):
            target = Target(out, source, timing, crf)
            out.start_encoding()
            yield target
            target.finish()
    except av.error.FFmpegError as error:
        reason = error.strerror or "the encoder failed"
        raise OSError(f"cannot write {path}: {reason.lower()}") from None


def _check_sound(path: str | os.PathLike[str], sounds: list[Any]) -> None:
    """Raises InputError where a container of the kind of `path` has no place for these streams."""
    fits = [suffix for suffix, kind in _FORMATS.items() if _holds(kind, sounds)]
    if Path(path).suffix.lower() not in fits:
        names = ", ".join(sorted({sound.codec_context.codec.canonical_name for sound in sounds}))
        todo = f"try {' or '.join(fits)}" if fits else "convert the audio first, to AAC or FLAC"
        raise InputError(f"{path} cannot hold this audio ({names}) as it is; {todo}")


def _holds(kind: str, sounds: list[Any]) -> bool:
    """Whether FFmpeg's container `kind` takes these streams: it is asked to begin one in memory."""
    trial = av.open(io.BytesIO(), "w", format=kind)
    try:
        for sound in sounds:
            trial.add_stream_from_template(sound)
        if sounds:
            trial.start_encoding()
    except (ValueError, av.error.FFmpegError):
        return False
    finally:
        # The end of a file without packets may be more than it can write.
        with suppress(av.error.FFmpegError):
            trial.close()
    return True


def check(path: str | os.PathLike[str], source: str | os.PathLike[str]) -> None:
    """Finds out whether `path` can be written, before any work is done.

    Raises:
        InputError: it is the source itself, has a suffix that is none of `SUFFIXES`, or its folder
            is missing or cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"cannot write {path}: a name ends in one of {', '.join(SUFFIXES)}"
            f"{nearest(suffix, SUFFIXES)}"
        )
    if Path(path).exists() and Path(source).exists() and os.path.samefile(path, source):
        raise InputError(f"{path} is the video to read; give the new one another name")
    try:
        files.check(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"cannot write {path}: {reason}") from None
