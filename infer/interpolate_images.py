"""Pictures on their own: folders of them and animated WebP in, folders of PNG, GIF and WebP out.

Whatever is written here passes through lossless segments first, as any video does: so it too goes
on where it was stopped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.filter import Graph
from PIL import Image, ImageSequence, UnidentifiedImageError

from mv2_jax import files
from mv2_jax.errors import InputError
from mv2_jax.infer import interpolate_packets as packets
from mv2_jax.infer import interpolate_write as writing
from mv2_jax.infer.interpolate_codecs import CODECS, Encoder, encoder
from mv2_jax.infer.interpolate_encode import Segments, timed
from mv2_jax.infer.interpolate_layout import Layout
from mv2_jax.infer.interpolate_read import Source

KINDS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".exr", ".dpx")
_MILLI = Fraction(1, 1000)


class Pictures(Source):
    """A `Source` whose pictures lie in files of their own, or in one that FFmpeg does not read."""

    def __init__(
        self, path: str, survey: packets.Survey, frames: Any, base: Fraction, strict: bool
    ):
        self._set_up(path, survey, strict)
        self.container = self.stream = None
        self.base, self.aspect = base, Fraction(1)
        self._given = frames

    def _seek(self, time: Fraction) -> None:
        """There is nothing to seek in."""

    def _frames(self) -> Iterator[av.VideoFrame]:
        yield from self._given


@contextmanager
def folder(path: str, pace: Fraction | None, strict: bool = False) -> Iterator[Pictures]:
    """A folder's pictures in the order of the numbers in their names, `pace` a second.

    Raises:
        InputError: no pace, or no pictures.
    """
    paths = [p for p in Path(path).iterdir() if p.suffix.lower() in KINDS]
    if not paths:
        raise InputError(f"{path} holds no pictures ({', '.join(KINDS)})")
    if pace is None:
        raise InputError(f"{path} is a folder of pictures: --pace says how many a second they are")
    paths.sort(key=lambda p: [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", p.name)])

    def frames() -> Iterator[av.VideoFrame]:
        for k, each in enumerate(paths):
            with packets.told(str(each)), av.open(f"file:{each}") as container:
                frame = next(container.decode(video=0), None)
            if frame is None:
                raise InputError(f"cannot read {each}: there is no picture in it")
            frame.pts, frame.duration, frame.time_base = k, 1, 1 / pace
            yield frame

    length = len(paths) / pace
    yield Pictures(path, packets.Survey(len(paths), Fraction(0), pace, length), frames(), 1 / pace,
                   strict)  # fmt: skip


def animated(path: str) -> bool:
    """Whether a file is an animated WebP, which FFmpeg does not read."""
    try:
        files.regular(path)
        with open(path, "rb") as file:
            head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WEBP":
            return False
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except (OSError, UnidentifiedImageError):
        return False


@contextmanager
def webp(path: str, strict: bool = False) -> Iterator[Pictures]:
    """The pictures of an animated WebP. Raises InputError where it is damaged."""
    try:
        with Image.open(path) as image:
            lasts = []
            for each in ImageSequence.Iterator(image):
                each.load()
                lasts.append(each.info.get("duration") or 100)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read {path}: the WebP is damaged ({error})") from None

    def frames() -> Iterator[av.VideoFrame]:
        ticks = 0
        with Image.open(path) as image:
            for each, length in zip(ImageSequence.Iterator(image), lasts):
                pixels = np.asarray(each.convert("RGBA"))
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgba")
                frame.pts, frame.duration, frame.time_base = ticks, length, _MILLI
                ticks += length
                yield frame

    length = sum(lasts) * _MILLI
    survey = packets.Survey(len(lasts), Fraction(0), len(lasts) / length, length)
    yield Pictures(path, survey, frames(), _MILLI, strict)


def lossless(given: Layout, rate: Fraction, clock: Fraction, deep: bool) -> Encoder:
    """FFV1 in RGB, in 16 bits where the source has more than 8 and the result may be `deep`."""
    kind = {(False, False): "bgr0", (False, True): "bgra", (True, False): "gbrp16le",
            (True, True): "gbrap16le"}  # fmt: skip
    pixels = kind[deep and given.bits > 8, given.alpha]
    return encoder(CODECS["ffv1"], given, pixels=pixels, rate=rate, clock=clock)


@dataclass(frozen=True)
class Album:
    """Pictures to be written: a folder of PNG, a GIF or a WebP, by the path's suffix."""

    path: str
    encoder: Encoder
    quality: int

    def segments(self, key: str) -> Any:
        """As `interpolate_write.Film.segments`."""
        return writing.segments(self.path, self.encoder, key)

    def write(self, source: Source, segments: Segments, lasts: Fraction) -> int:
        """Puts the result together. Raises OSError where it cannot be written."""
        kind = {".gif": _gif, ".webp": _webp}.get(Path(self.path).suffix.lower(), _folder)
        with writing.told(self.path), files.whole(self.path) as scratch:
            kind(scratch, self, self._frames(segments, lasts), lasts)
        segments.remove()
        return 0

    def _frames(
        self, segments: Segments, lasts: Fraction
    ) -> Iterator[tuple[av.VideoFrame, Fraction, Fraction]]:
        """Decoded pictures, and the seconds from which and for which they are shown."""
        context, clock = av.CodecContext.create("ffv1", "r"), self.encoder.clock
        trial = self.encoder.opened()
        trial.open()
        context.extradata = trial.extradata
        context.width, context.height = self.encoder.layout.width, self.encoder.layout.height
        for coded, due, length in timed(segments.packets(), round(lasts / clock)):
            for frame in context.decode(av.Packet(coded.bytes())):
                yield frame, due * clock, length * clock


def _folder(path: Path, album: Album, frames: Iterator, last: Fraction) -> None:
    layout = album.encoder.layout
    form = ("rgb48be", "rgba64be") if layout.bits > 8 else ("rgb24", "rgba")
    path.mkdir()
    for k, (frame, _, _) in enumerate(frames, start=1):
        context = av.CodecContext.create("png", "w")
        context.width, context.height = frame.width, frame.height
        context.pix_fmt = form[layout.alpha]
        context.time_base = Fraction(1, 25)
        flat = frame.reformat(format=form[layout.alpha], threads=1)
        flat.pts = 0
        made = [*context.encode(flat), *context.encode(None)]
        (path / f"frame-{k:06}.png").write_bytes(b"".join(map(bytes, made)))


def _gif(path: Path, album: Album, frames: Iterator, last: Fraction) -> None:
    """A palette for each picture, and no time finer than GIF's hundredths."""
    layout, tick = album.encoder.layout, Fraction(1, 100)
    first = next(frames)
    graph = Graph()
    source = graph.add_buffer(
        width=layout.width, height=layout.height, format=first[0].format, time_base=tick
    )
    fork, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    used, sink = graph.add("paletteuse", "new=1:dither=sierra2_4a"), graph.add("buffersink")
    source.link_to(fork)
    fork.link_to(palette, 0, 0)
    fork.link_to(used, 1, 0)
    palette.link_to(used, 0, 1)
    used.link_to(sink)
    graph.configure()
    options = {"loop": "0", "final_delay": str(max(1, round(last / tick)))}
    with av.open(str(path), "w", format="gif", options=options) as out:
        stream = out.add_stream("gif", rate=album.encoder.rate)
        stream.width, stream.height, stream.pix_fmt = layout.width, layout.height, "pal8"
        stream.codec_context.time_base = tick
        ticks = -1
        for frame, time, length in _with(first, frames):
            ticks = frame.pts = max(ticks + 1, round(time / tick))
            frame.time_base = tick
            graph.vpush(frame)
            made = graph.vpull()
            made.pts, made.time_base = frame.pts, tick
            for packet in stream.encode(made):
                packet.duration = max(1, round(length / tick))
                out.mux(packet)
        out.mux(stream.encode(None))


def _with(first: Any, rest: Iterator) -> Iterator:
    yield first
    yield from rest


def _webp(path: Path, album: Album, frames: Iterator, last: Fraction) -> None:
    form = "rgba" if album.encoder.layout.alpha else "rgb24"
    pictures, lasts = [], []
    for frame, _, length in frames:
        pictures.append(Image.fromarray(frame.reformat(format=form, threads=1).to_ndarray()))
        lasts.append(max(1, round(length / _MILLI)))
    best = album.quality >= 100
    pictures[0].save(path, format="WEBP", save_all=True, append_images=pictures[1:], loop=0,
                     duration=lasts, lossless=best, quality=min(album.quality, 100))  # fmt: skip
