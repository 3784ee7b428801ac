"""What travels along in `mv2 interpolate` untouched: sound, subtitles, fonts, chapters, names.

Each stream finds its place in the new container as it is; subtitles that are text are rewritten
where only their wrapping differs; what has no place is left out and said.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.filter import Graph

from mv2_jax.errors import InputError
from mv2_jax.infer import interpolate_packets as packets
from mv2_jax.infer.interpolate_codecs import FORMATS
from mv2_jax.infer.interpolate_timeline import Span

_TEXT = {"subrip", "srt", "mov_text", "webvtt", "text"}
# Text subtitles as a container takes them.
_WRITTEN = {"mp4": "mov_text", "mov": "mov_text", "matroska": "subrip", "webm": "webvtt"}
# Encoders of subtitles do not open without it; nothing here is styled.
_STYLE = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, \
Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, \
Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""
_STRETCHED = {"webm": "libopus"}
# What a container says of the file it was, not of the film.
_OWN = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration",
        "number_of_bytes", "number_of_frames", "bps", "vendor_id", "handler_name"}  # fmt: skip


@dataclass(frozen=True)
class Stream:
    """A stream that travels along: `how` is "copy", "text" or "stretch"."""

    given: Any
    how: str


@dataclass(frozen=True)
class Plan:
    """The streams that travel along, and one line for each thing that does not."""

    streams: tuple[Stream, ...]
    said: tuple[str, ...]


def plan(path: str, source: Any, video: Any, span: Span, sound: str) -> Plan:
    """What of an open source goes into a file `path`.

    Args:
        video: the stream of `source` that is interpolated.
        sound: "keep" as it is, "stretch" with the pictures, or "drop".

    Raises:
        InputError: the container cannot hold the sound; the message says which could.
    """
    if source is None:
        return Plan((), ())
    kind, made, said = FORMATS[Path(path).suffix.lower()], [], []
    others = {"data": 0}
    for stream in source.streams:
        if stream.index == video.index:
            continue
        if stream.type == "audio":
            if stream.codec_context is None:
                said.append("1 audio stream is left out: there is no decoder for it here")
            elif sound != "drop":
                made.append(Stream(stream, "stretch" if sound == "stretch" else "copy"))
        elif stream.type == "subtitle":
            how = _subtitle(kind, stream, span)
            if how:
                made.append(Stream(stream, how))
            else:
                said.append(f"subtitles ({_codec(stream)}) are left out: {_why(kind, span)}")
        elif stream.type == "video":
            if stream.disposition & stream.disposition.attached_pic and _takes(kind, [stream]):
                made.append(Stream(stream, "copy"))
            else:
                said.append("a second video stream is left out")
        elif stream.type == "attachment" and kind != "matroska":
            said.append(f"the attachment {stream.name} is left out: only .mkv has a place for it")
        elif stream.type == "data" and "timecode" not in stream.metadata:
            others["data"] += 1
    if others["data"]:
        said.append(f"{others['data']} streams of data are left out")
    _check_sound(path, [s.given for s in made if s.given.type == "audio" and s.how == "copy"])
    return Plan(tuple(made), tuple(dict.fromkeys(said)))


def _subtitle(kind: str, stream: Any, span: Span) -> str | None:
    if stream.codec_context is None or (span.slower != 1 and _codec(stream) not in _TEXT):
        return None
    if _takes(kind, [stream]):
        return "copy"
    return "text" if _codec(stream) in _TEXT and kind in _WRITTEN else None


def _why(kind: str, span: Span) -> str:
    return "they cannot be slowed" if span.slower != 1 else f"{kind} has no place for them"


def _codec(stream: Any) -> str:
    return stream.codec_context.codec.canonical_name if stream.codec_context else "unknown"


def _takes(kind: str, streams: list[Any]) -> bool:
    """Whether FFmpeg's container `kind` takes these streams: it is asked to begin one in memory."""
    trial = av.open(io.BytesIO(), "w", format=kind)
    try:
        for stream in streams:
            trial.add_stream_from_template(stream, opaque=True)
        if streams:
            trial.start_encoding()
    except (ValueError, av.error.FFmpegError):
        return False
    finally:
        # The end of a file without packets may be more than it can write.
        with suppress(ValueError, av.error.FFmpegError):
            trial.close()
    return True


def _check_sound(path: str, sounds: list[Any]) -> None:
    """Raises InputError where a container of the kind of `path` has no place for these streams."""
    films = [suffix for suffix in FORMATS if suffix not in (".gif", ".webp")]
    suffix = Path(path).suffix.lower()
    if not sounds or suffix not in films:
        return
    fits = [suffix for suffix in films if _takes(FORMATS[suffix], sounds)]
    if suffix not in fits:
        names = ", ".join(sorted({_codec(sound) for sound in sounds}))
        todo = f"try {' or '.join(fits)}" if fits else "convert the audio first, to AAC or FLAC"
        raise InputError(
            f"{path} cannot hold this audio ({names}) as it is; {todo}, or --sound drop"
        )


class Carrier:
    """Puts the passengers of one open source into one open container."""

    def __init__(self, source: Any, target: Any, plan: Plan, span: Span):
        self._source, self._target, self._span = source, target, span
        self._kind = target.format.name.split(",")[0]
        self._heard: dict[int, int] = {}  # the last packet's time of decoding, by stream
        self._seats: dict[int, tuple[Stream, Any, Any]] = {}
        for stream in plan.streams:
            given = source.streams[stream.given.index]
            seat, work = self._seat(given, stream.how)
            seat.metadata.update(tags(given.metadata))
            seat.disposition = given.disposition
            self._seats[given.index] = (stream, seat, work)

    def _seat(self, given: Any, how: str) -> tuple[Any, Any]:
        if how == "text":
            seat = self._target.add_stream(_WRITTEN[self._kind])
            seat.codec_context.subtitle_header = _STYLE
            return seat, None
        if how == "stretch":
            seat = self._target.add_stream(
                _STRETCHED.get(self._kind, "aac"), rate=given.codec_context.sample_rate
            )
            seat.codec_context.layout = given.codec_context.layout.name
            return seat, _Stretched(given, seat, self._span)
        return self._target.add_stream_from_template(given, opaque=True), None

    def about(self, video: Any, given: Any) -> None:
        """Names, chapters, fonts and the timecode. `video` is the new stream, `given` the old."""
        video.metadata.update(tags(given.metadata))
        video.disposition = given.disposition
        known = {key: value for key, value in self._source.metadata.items()}
        self._target.metadata.update(tags(known))
        code = next(
            (s.metadata[k] for s in self._source.streams for k in s.metadata if k == "timecode"),
            known.get("timecode", known.get("TIMECODE")),
        )
        if code and self._span.slower == 1 and self._span.start is None:
            video.metadata["timecode"] = code
        self._target.set_chapters(list(self._chapters()))
        if self._kind == "matroska":
            for font in self._source.streams.attachments:
                self._target.add_attachment(font.name or "font", font.mimetype or "", font.data)

    def _chapters(self) -> Iterator[dict[str, Any]]:
        for chapter in self._source.chapters():
            base = chapter["time_base"]
            begin, end = (self._within(chapter[key] * base) for key in ("start", "end"))
            if end > begin:
                yield {**chapter, "start": round(begin / base), "end": round(end / base)}

    def _within(self, time: Fraction) -> Fraction:
        time = time if self._span.start is None else max(time, self._span.start)
        return self._span.shown(time if self._span.end is None else min(time, self._span.end))

    def packets(self) -> Iterator[tuple[Fraction, av.Packet]]:
        """Packets for the target, each with the second at which it is due, as they lie in the
        source."""
        for packet in packets.joined(self._source):
            if packet.stream.index not in self._seats or not packet.size:
                continue
            if packets.stamp_of(packet) is None:
                continue
            stream, seat, work = self._seats[packet.stream.index]
            if work is not None:
                for made in work.packets(packet):
                    yield made.pts * made.time_base, made
                continue
            time = packets.stamp_of(packet) * packet.time_base
            if not self._span.holds(time):
                continue
            copied = self._moved(packet, stream, seat)
            if copied is not None:
                yield self._span.shown(time), copied
        for _, _, work in self._seats.values():
            for made in work.packets(None) if work is not None else ():
                yield made.pts * made.time_base, made

    def _moved(self, packet: av.Packet, stream: Stream, seat: Any) -> av.Packet | None:
        """A packet in the new stream. A time no later than the last one's is moved on."""
        matroska = self._kind in ("matroska", "webm")
        # What an edit list cuts away primes the decoder; Matroska cannot say so, and would play it.
        if packet.is_discard and matroska:
            return None
        shown = packet.dts if packet.pts is None else packet.pts
        due = shown if packet.dts is None else packet.dts
        base, length = packet.time_base, packet.duration or 0
        if stream.how == "text":
            packet = _rewritten(packet, self._kind, _codec(stream.given))
            if packet is None:
                return None
        times = (self._span.shown(ticks * base) for ticks in (shown, due))
        shown, due = (round(time / seat.time_base) for time in times)
        # Matroska takes equal times, and has some: its ticks may be longer than a packet.
        least = self._heard.get(seat.index, due - 1) + (0 if matroska else 1)
        self._heard[seat.index] = due = max(due, least)
        packet.pts, packet.dts = max(shown, due), due
        packet.duration = round(length * base * self._span.slower / seat.time_base)
        packet.time_base = seat.time_base
        packet.stream = seat
        return packet


class _Stretched:
    """Sound played slower at its own pitch (FFmpeg's atempo), encoded anew."""

    def __init__(self, given: Any, seat: Any, span: Span):
        self._given, self._seat, self._span = given, seat, span
        self._graph: Graph | None = None
        self._start: Fraction | None = None
        self._samples = 0

    def packets(self, packet: av.Packet | None) -> list[av.Packet]:
        frames = packet.decode() if packet is not None else self._given.decode(None)
        made: list[av.Packet] = []
        for frame in frames:
            base = frame.time_base or self._given.time_base
            time = Fraction(0) if frame.pts is None else frame.pts * base
            if not self._span.holds(time):
                continue
            if self._graph is None:
                self._graph, self._start = self._chain(frame), self._span.shown(time)
            frame.pts = None
            self._graph.push(frame)
            made += self._pulled()
        if packet is None:
            if self._graph is not None:
                self._graph.push(None)
                made += self._pulled()
            made += self._seat.encode(None)
        return made

    def _chain(self, frame: Any) -> Graph:
        graph, tempo = Graph(), 1 / self._span.slower
        nodes = [graph.add_abuffer(
            sample_rate=frame.sample_rate, format=frame.format.name, layout=frame.layout.name,
            time_base=Fraction(1, frame.sample_rate),
        )]  # fmt: skip
        while tempo < Fraction(1, 2):  # one atempo does no less than half
            nodes.append(graph.add("atempo", "0.5"))
            tempo *= 2
        nodes += [graph.add("atempo", f"{float(tempo):.9g}"), graph.add("abuffersink")]
        graph.link_nodes(*nodes).configure()
        return graph

    def _pulled(self) -> list[av.Packet]:
        made = []
        while True:
            try:
                frame = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return made
            rate = Fraction(1, frame.sample_rate)
            frame.pts = round(self._start / rate) + self._samples
            frame.time_base = rate
            self._samples += frame.samples
            made += self._seat.encode(frame)


def tags(metadata: Any) -> dict[str, str]:
    """What is said of the film, or of a stream, without what the old container said of itself."""
    return {
        key: value
        for key, value in metadata.items()
        if key.lower() not in _OWN and not key.startswith("_STATISTICS") and key != "timecode"
    }


def _rewritten(packet: av.Packet, kind: str, codec: str) -> av.Packet | None:
    """A packet of text subtitles as another container holds it."""
    data = bytes(packet)
    if codec == "mov_text":  # length, text, styles
        data = data[2 : 2 + int.from_bytes(data[:2], "big")]
    text = data.decode("utf-8", "replace").strip("\r\n\0 ")
    if not text:
        return None
    if kind in ("mp4", "mov"):
        plain = re.sub(r"</?[^>]{1,40}>", "", text).encode()[:65_535]
        return av.Packet(len(plain).to_bytes(2, "big") + plain)
    return av.Packet(text.encode())
