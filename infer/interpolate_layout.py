"""How a video stores its pictures (chroma, bits, alpha, colours), and the nearest a codec has."""

from __future__ import annotations

import dataclasses
import functools
import re
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from mv2_jax.infer import frames

UNNAMED = 2  # "unspecified" in ISO/IEC 23091-2, for primaries, transfer and matrix alike
FULL = 2  # range 0 to 255; any other value is limited range, 16 to 235
RGB = "rgb"
# Weights of red and blue in luma, by the standard's number of the matrix; what is not here is
# treated as BT.709, which is harmless: the pictures go there and back by the same matrix.
_LUMA = {4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087),
         9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}  # fmt: skip
BT709 = (0.2126, 0.0722)
_BT709_TAGS = {"matrix": 1, "primaries": 1, "transfer": 1, "range": 1}
# Luma rows and columns a chroma sample.
SPARSE = {"420": (2, 2), "422": (1, 2), "440": (2, 1), "411": (1, 4), "410": (4, 4), "444": (1, 1),
          RGB: (1, 1)}  # fmt: skip
_DEPTHS = (8, 9, 10, 12, 14, 16)
_PACKED = {"bgr24": (RGB, 8, False), "rgb24": (RGB, 8, False), "bgr0": (RGB, 8, False),
           "bgra": (RGB, 8, True), "rgba": (RGB, 8, True), "nv12": ("420", 8, False),
           "p010le": ("420", 10, False), "p210le": ("422", 10, False),
           "rgb48be": (RGB, 16, False), "rgba64be": (RGB, 16, True)}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How the pictures of one video are stored: hashable, so a compiled program can know it.

    `height` and `width` are of the luma plane, upright, and multiples of what a chroma sample
    covers. `chroma` is a key of `SPARSE`; `bits` from 8 to 16. `matrix`, `primaries`, `transfer`
    and `range` are the standard's numbers. A decoded picture is upright once it is `mirrored`,
    where so, and has made `turns` quarter turns anticlockwise.
    """

    height: int
    width: int
    chroma: str = "420"
    bits: int = 8
    alpha: bool = False
    matrix: int = UNNAMED
    primaries: int = UNNAMED
    transfer: int = UNNAMED
    range: int = 0
    turns: int = 0
    mirrored: bool = False

    @property
    def format(self) -> str:
        """FFmpeg's name of the planar pixel format."""
        return name_of(self.chroma, self.bits, self.alpha)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of the planes."""
        rows, columns = SPARSE[self.chroma]
        whole, small = (self.height, self.width), (self.height // rows, self.width // columns)
        return (whole, small, small, whole)[: 3 + self.alpha]

    @property
    def dtype(self) -> Any:
        return np.uint8 if self.bits == 8 else np.uint16


def name_of(chroma: str, bits: int, alpha: bool) -> str:
    planar = f"gbr{'a' * alpha}p" if chroma == RGB else f"yuv{'a' * alpha}{chroma}p"
    return planar + (f"{bits}le" if bits > 8 else "")


@functools.cache
def _exists(name: str) -> bool:
    try:
        av.VideoFormat(name)
    except ValueError:
        return False
    return True


def layout_of(frame: av.VideoFrame) -> Layout:
    """The layout that holds every sample of a decoded frame, once it is upright.

    Grey becomes 4:2:0 in the range that it is in, by custom the full one.
    """
    form = frame.format
    mirrored, turns = frames.turns_of(frame)
    tags: dict[str, int] = {
        "matrix": int(frame.colorspace),
        "primaries": int(frame.color_primaries),
        "transfer": int(frame.color_trc),
        "range": FULL if form.name.startswith("yuvj") else int(frame.color_range),
    }
    colours = [c for c in form.components if not c.is_alpha]
    sparse = (64 // form.chroma_height(64), 64 // form.chroma_width(64))
    chroma = {ways: name for name, ways in SPARSE.items() if name != RGB}.get(sparse, "444")
    if frames.is_grey(form):
        chroma = "420"
        tags = {"matrix": 1, "primaries": 1, "transfer": 1, "range": tags["range"] or FULL}
    elif form.is_rgb or form.has_palette or len(colours) < 3:
        chroma, tags = RGB, {**tags, "matrix": 0, "range": FULL}
    if turns % 2:
        chroma = {"422": "440", "440": "422", "411": "444"}.get(chroma, chroma)
    alpha = form.has_palette or any(c.is_alpha for c in form.components)
    depth = max(c.bits for c in form.components)
    fits = [
        (bits, kind)
        for kind in (chroma, "444")
        for bits in _DEPTHS
        if bits >= min(depth, 16) and _exists(name_of(kind, bits, alpha))
    ]
    bits, chroma = fits[0]
    height, width = (frame.height, frame.width)[:: -1 if turns % 2 else 1]
    flat = Layout(height, width, chroma, bits, alpha, turns=turns, mirrored=mirrored, **tags)
    return _whole(flat, height, width)


def _whole(layout: Layout, height: int, width: int) -> Layout:
    """The layout with sides that are whole chroma samples."""
    rows, columns = SPARSE[layout.chroma]
    return dataclasses.replace(
        layout, height=height + -height % rows, width=width + -width % columns
    )


def kinds(formats: list[str]) -> dict[tuple[str, int, bool], str]:
    """Of FFmpeg's pixel formats those that pictures can be written in: (chroma, bits, alpha)."""
    found = {}
    for name in formats:
        planar = re.fullmatch(r"(yuv|yuva|gbr|gbra)(\d{3})?p(\d+)?(?:le)?", name)
        if name in _PACKED:
            found.setdefault(_PACKED[name], name)
        elif planar:
            chroma = planar[2] or RGB
            kind = (chroma, int(planar[3] or 8), planar[1].endswith("a"))
            if chroma in SPARSE and (chroma != RGB or planar[1].startswith("gbr")):
                found[kind] = name
    return found


def nearest(layout: Layout, known: dict[tuple[str, int, bool], str]) -> Layout:
    """The layout, of those `known`, that keeps most of `layout`'s samples, and is no larger than
    need be: first alpha, then RGB or not, then chroma, then bits."""
    here = SPARSE[layout.chroma]

    def cost(kind: tuple[str, int, bool]) -> tuple:
        chroma, bits, alpha = kind
        there = SPARSE[chroma]
        if layout.chroma == RGB and chroma != RGB:
            coarse = chroma != "420"  # what every player knows, where it cannot be kept anyway
        else:
            coarse = any(a % b for a, b in zip(here, there))
        return (
            layout.alpha and not alpha,
            (layout.chroma == RGB) != (chroma == RGB),
            coarse,
            max(0, layout.bits - bits),
            alpha,
            -there[0] * there[1],
            bits,
        )

    chroma, bits, alpha = min(known, key=cost)
    tags = _BT709_TAGS if layout.chroma == RGB != chroma else {}
    if chroma == RGB != layout.chroma:
        tags = {"matrix": 0, "range": FULL}
    new = dataclasses.replace(layout, chroma=chroma, bits=bits, alpha=alpha, **tags)
    return _whole(new, layout.height, layout.width)


def losses(given: Layout, kept: Layout) -> str:
    """What a change of layout costs, for a person, "" where every sample is kept. Alpha is not
    spoken of: whether any of it was there, only the pictures tell."""
    said = []
    if given.chroma == RGB != kept.chroma:
        said.append(f"RGB becomes {_spoken(kept)}")
    elif any(a % b for a, b in zip(SPARSE[given.chroma], SPARSE[kept.chroma])):
        said.append(f"{_spoken(given)} becomes {_spoken(kept)}")
    if is_full(given) and not is_full(kept) and given.chroma != RGB:
        said.append("full range becomes limited")
    if given.bits > kept.bits:
        said.append(f"{given.bits} bits become {kept.bits}")
    return " and ".join(said)


def _spoken(layout: Layout) -> str:
    return "RGB" if layout.chroma == RGB else ":".join(layout.chroma)


def is_full(layout: Layout) -> bool:
    return layout.range == FULL or layout.chroma == RGB


def weights(layout: Layout) -> tuple[float, float]:
    if layout.matrix == UNNAMED and min(layout.height, layout.width) < 720:
        return _LUMA[5]  # by custom, what is not HD is BT.601
    return _LUMA.get(layout.matrix, BT709)


def levels(layout: Layout) -> tuple[float, float, float, float]:
    """Luma's black and span, chroma's middle and span."""
    step = 2.0 ** (layout.bits - 8)
    if is_full(layout):
        return 0.0, 256 * step - 1, 128 * step, 256 * step - 1
    return 16 * step, 219 * step, 128 * step, 224 * step
