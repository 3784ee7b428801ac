"""The codecs that `mv2 interpolate` writes: one row each, and what an encoder is told."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.sidedata.sidedata import Type

from mv2_jax.errors import InputError
from mv2_jax.infer import interpolate_layout as layouts
from mv2_jax.infer.interpolate_layout import Layout
from mv2_jax.lookup import nearest

FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov", ".webm": "webm", ".gif": "gif",
           ".webp": "webp"}  # fmt: skip
SUFFIXES = tuple(FORMATS)
_FILES = (".mp4", ".mkv", ".mov")
_X26X = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower",
         "veryslow", "placebo")  # fmt: skip
# What FFmpeg calls encoders of graphics processors and other hardware: h264_nvenc, av1_qsv ...
_HARDWARE = re.compile(r"(h264|hevc|av1)_(nvenc|qsv|vaapi|videotoolbox|amf|mf|v4l2m2m)")


@dataclass(frozen=True)
class Codec:
    """A row: FFmpeg's encoders, of which each knows other pixel formats; the suffixes of the files
    that hold it; `crf`'s default and largest value; `presets`, the first by default; and
    `options(crf, preset, layout)`, for the encoder."""

    encoders: tuple[str, ...]
    suffixes: tuple[str, ...]
    options: Callable[[int, str, Layout], dict[str, str]]
    crf: tuple[int, int] | None = None
    presets: tuple[str, ...] = ()
    tag: str = ""  # what MP4 and MOV call it, where players want another than FFmpeg's own
    limited: bool = False  # decoders take it for limited range, whatever one says
    refused: tuple[str, ...] = ()  # pixel formats that the encoder names and does not open with


def _x264(crf: int, preset: str, layout: Layout) -> dict[str, str]:
    # With 10 bits, x264 takes crf 0 for merely very good.
    return {"preset": preset, **({"crf": str(crf)} if crf else {"qp": "0"})}


def _x265(crf: int, preset: str, layout: Layout) -> dict[str, str]:
    lossless = ":lossless=1" * (crf == 0)
    return {"preset": preset, "crf": str(crf), "x265-params": f"log-level=error{lossless}"}


def _svt(crf: int, preset: str, layout: Layout) -> dict[str, str]:
    return {"preset": preset, "crf": str(max(crf, 1)), "svtav1-params": "lossless=1" * (crf == 0)}


def _vp9(crf: int, preset: str, layout: Layout) -> dict[str, str]:
    speed = {"crf": str(crf), "b": "0", "deadline": "good", "cpu-used": preset, "row-mt": "1"}
    return {**speed, "auto-alt-ref": "0" if layout.alpha else "1", "lossless": str(int(crf == 0))}


def _prores(crf: int, preset: str, layout: Layout) -> dict[str, str]:
    return {"profile": "4444" if layout.chroma == "444" else "hq", "vendor": "apl0"}


def _ffv1(crf: int, preset: str, layout: Layout) -> dict[str, str]:
    return {"level": "3", "slices": "4", "slicecrc": "1", "g": "1"}


CODECS = {
    "h264": Codec(("libx264", "libx264rgb"), _FILES, _x264, (16, 51), ("medium", *_X26X)),
    "hevc": Codec(("libx265",), _FILES, _x265, (18, 51), ("medium", *_X26X), "hvc1",
                  refused=("yuva420p", "yuva420p10le")),
    "av1": Codec(("libsvtav1",), (".mp4", ".mkv", ".webm"), _svt, (24, 63),
                 ("8", *map(str, range(14)))),
    "vp9": Codec(("libvpx-vp9",), (".webm", ".mkv", ".mp4"), _vp9, (24, 63),
                 ("2", *map(str, range(9))), refused=("yuva422p", "yuva444p", "gbrap")),
    "prores": Codec(("prores_ks",), (".mov", ".mkv"), _prores, limited=True),
    "ffv1": Codec(("ffv1",), (".mkv",), _ffv1),
}  # fmt: skip
USUAL = {".webm": "vp9"}
ALSO = {"h265": "hevc", "x265": "hevc", "libx265": "hevc", "avc": "h264", "x264": "h264",
        "libx264": "h264"}  # other names of the same  # fmt: skip


def _hardware(name: str) -> Codec:
    """The row of an encoder that FFmpeg has for some hardware."""
    quality = {"nvenc": "cq", "qsv": "global_quality", "videotoolbox": "q:v"}
    kind, maker = name.split("_")

    def options(crf: int, preset: str, layout: Layout) -> dict[str, str]:
        return {quality.get(maker, "qp"): str(crf), **({"preset": preset} if preset else {})}

    return Codec((name,), CODECS[kind].suffixes, options, (20, 63), ("",), CODECS[kind].tag)


def find(name: str | None, suffix: str) -> Codec:
    """The codec of a name, or the usual one of a file's suffix.

    Raises:
        InputError: there is none of the name, or files of the suffix do not hold it.
    """
    name = name or USUAL.get(suffix, "h264")
    name = ALSO.get(name, name)
    if name in CODECS:
        codec = CODECS[name]
    elif _HARDWARE.fullmatch(name):
        if name not in av.codecs_available:
            raise InputError(f"--codec {name}: the FFmpeg inside PyAV is built without it here")
        codec = _hardware(name)
    else:
        raise InputError(
            f"--codec takes {', '.join(CODECS)}, or FFmpeg's name of a hardware encoder such as "
            f"h264_nvenc; not {name!r}{nearest(name, CODECS)}"
        )
    if suffix not in codec.suffixes:
        raise InputError(f"{name} goes into {', '.join(codec.suffixes)}, not {suffix}")
    for encoder in codec.encoders:
        if encoder not in av.codecs_available:
            raise InputError(f"--codec {name}: the FFmpeg inside PyAV has no {encoder}")
    return codec


@dataclass(frozen=True)
class Encoder:
    """How pictures are encoded: FFmpeg's encoder, its pixel format, and all that it is told."""

    name: str
    stored: str
    layout: Layout
    options: dict[str, str]
    rate: Fraction
    clock: Fraction
    aspect: Fraction = Fraction(1)
    tag: str = ""

    def setup(self, context: Any) -> Any:
        """A codec context that was just made, ready to be opened."""
        layout = self.layout
        context.width, context.height, context.pix_fmt = layout.width, layout.height, self.stored
        context.options = dict(self.options)
        context.time_base, context.framerate = self.clock, self.rate
        context.color_range, context.colorspace = layout.range, layout.matrix
        context.color_primaries, context.color_trc = layout.primaries, layout.transfer
        if self.aspect > 0:
            context.sample_aspect_ratio = self.aspect
        return context

    def opened(self) -> Any:
        """A codec context of its own, whose packets any container can take."""
        context = self.setup(av.CodecContext.create(self.name, "w"))
        context.flags |= Flags.global_header
        return context


def encoder(
    codec: Codec,
    given: Layout,
    *,
    crf: int | None = None,
    preset: str | None = None,
    pixels: str | None = None,
    rate: Fraction,
    clock: Fraction,
    aspect: Fraction = Fraction(1),
    side: Mapping[Any, bytes] | None = None,
    location: str | None = None,
) -> Encoder:
    """What encodes pictures of a layout with the least loss.

    Args:
        pixels: the one of FFmpeg's pixel formats that shall be used; by default the nearest.
        side: of a frame, whose HDR10 numbers go along.
        location: of chroma samples, as FFmpeg calls it.

    Raises:
        InputError: the codec has no such quality, preset or pixel format, or no hardware here.
    """
    quality, speed, known = check(codec, crf, preset, pixels)
    layout = layouts.nearest(given, known)
    if codec.limited and layout.range == layouts.FULL:
        layout = dataclasses.replace(layout, range=1)
    name, stored = known[layout.chroma, layout.bits, layout.alpha]
    options = codec.options(quality, speed, layout)
    _add_hdr(name, options, side or {})
    if location and layout.chroma == "420" == given.chroma:
        options["chroma_sample_location"] = location
    turned = given.turns % 2 and aspect > 0
    aspect = 1 / aspect if turned else aspect
    rate = rate.limit_denominator(1001)
    made = Encoder(name, stored, layout, options, rate, clock, aspect, codec.tag)
    if _HARDWARE.fullmatch(name):
        _try(made)
    return made


def _try(encoder: Encoder) -> None:
    """Opens an encoder of some hardware, which this machine may not have."""
    try:
        encoder.opened().open()
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--codec {encoder.name}: FFmpeg cannot open it on this machine ({reason}); is there "
            f"such hardware and its driver? {encoder.name.partition('_')[0]} needs none"
        ) from None


def check(
    codec: Codec, crf: int | None, preset: str | None, pixels: str | None
) -> tuple[int, str, dict[tuple[str, int, bool], tuple[str, str]]]:
    """The quality, the preset, and by kind of layout the encoder and pixel format to be used.

    Raises:
        InputError: as `encoder`.
    """
    name = codec.encoders[0]
    if codec.crf is None and crf is not None:
        raise InputError(f"--crf: {name} has no such quality to choose")
    usual, most = codec.crf or (0, 0)
    if crf is not None and not 0 <= crf <= most:
        raise InputError(f"--crf of {name} goes from 0 to {most}; not {crf}")
    if preset is not None and codec.presets != ("",) and preset not in codec.presets:
        if not codec.presets:
            raise InputError(f"--preset: {name} has none")
        known = ", ".join(codec.presets[1:])
        near = nearest(preset, codec.presets)
        raise InputError(f"--preset of {name}: {known}; not {preset!r}{near}")
    kinds: dict[tuple[str, int, bool], tuple[str, str]] = {}
    for name in codec.encoders:
        formats = [form.name for form in av.codec.Codec(name, "w").video_formats or []]
        formats = [form for form in formats if pixels in (None, form)]
        for kind, form in layouts.kinds(formats).items():
            if form not in codec.refused:
                kinds.setdefault(kind, (name, form))
    if not kinds:
        raise InputError(f"--pixels: {codec.encoders[0]} does not write {pixels!r}")
    return usual if crf is None else crf, preset or (codec.presets or ("",))[0], kinds


def _add_hdr(name: str, options: dict[str, str], side: Mapping[Any, bytes]) -> None:
    """HDR10's mastering display and light levels, in the words of each encoder."""
    words = {
        "libx264": ("x264-params", "mastering-display", "cll"),
        "libx265": ("x265-params", "master-display", "max-cll"),
        "libsvtav1": ("svtav1-params", "mastering-display", "content-light"),
    }
    if name not in words:
        return
    key, display, light = words[name]
    whole = name != "libsvtav1"
    made = [options[key]] if options.get(key) else []
    if Type.MASTERING_DISPLAY_METADATA in side:
        made.append(f"{display}={_mastering(side[Type.MASTERING_DISPLAY_METADATA], whole)}")
    if Type.CONTENT_LIGHT_LEVEL in side:
        most, average = np.frombuffer(side[Type.CONTENT_LIGHT_LEVEL], np.uint32)[:2]
        made.append(f"{light}={most},{average}")
    if made:
        options[key] = ":".join(made)


def _mastering(data: bytes, whole: bool) -> str:
    """FFmpeg's AVMasteringDisplayMetadata as encoders take it: G, B, R, white, luminances."""
    pairs = np.frombuffer(data, np.int32)[:20].reshape(10, 2)
    values = [float(a) / max(int(b), 1) for a, b in pairs]
    x = [round(v * 50_000) if whole else v for v in values[:8]]
    low, high = (round(v * 10_000) if whole else v for v in values[8:])
    return f"G({x[2]},{x[3]})B({x[4]},{x[5]})R({x[0]},{x[1]})WP({x[6]},{x[7]})L({high},{low})"
