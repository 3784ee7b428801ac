"""Pictures as an encoder wants them: planes of luma and chroma, upright and of even sides.

What comes out of a decoder stays in its own values: an 8 bit full range picture is never squeezed
through another range, and 10 bits stay 10. Only the interpolator sees RGB, by `rgb` and `planes`,
which undo each other exactly: chroma is enlarged by repeating and reduced by averaging.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from mv2_jax.infer import frames

if TYPE_CHECKING:
    from jax import Array

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]

UNNAMED = 2  # "unspecified" in ISO/IEC 23091-2, for primaries, transfer and matrix alike
FULL = 2  # range 0 to 255; any other value is limited range, 16 to 235
# Weights of red and blue in luma, by the standard's number of the matrix; what is not here is
# treated as BT.709, which is harmless: the pictures go there and back by the same matrix.
_LUMA = {4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087),
         9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}  # fmt: skip
_BT709 = (0.2126, 0.0722)
_SPARSE = {"420": (2, 2), "422": (1, 2), "444": (1, 1)}  # luma rows and columns a chroma sample


@dataclass(frozen=True)
class Layout:
    """How the pictures of one video are stored: hashable, so a compiled program can know it.

    `height` and `width` are of the luma plane, upright and even where chroma is sparse. `chroma` is
    "420", "422" or "444"; `bits` 8 or 10. `matrix`, `primaries`, `transfer` and `range` are the
    standard's numbers. A decoded picture is upright once it is `mirrored`, where so, and has made
    `turns` quarter turns anticlockwise.
    """

    height: int
    width: int
    chroma: str = "420"
    bits: int = 8
    matrix: int = UNNAMED
    primaries: int = UNNAMED
    transfer: int = UNNAMED
    range: int = 0
    turns: int = 0
    mirrored: bool = False

    @property
    def format(self) -> str:
        """FFmpeg's name of the pixel format."""
        return f"yuv{self.chroma}p{'10le' if self.bits == 10 else ''}"

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of the three planes."""
        rows, columns = _SPARSE[self.chroma]
        small = (self.height // rows, self.width // columns)
        return (self.height, self.width), small, small

    @property
    def dtype(self) -> Any:
        return np.uint16 if self.bits == 10 else np.uint8


def layout_of(frame: av.VideoFrame) -> Layout:
    """The layout for a video, from its first frame.

    RGB and palettes become 4:2:0 in BT.709, limited range, which every player knows. So does grey,
    in the range that it is in, by custom the full one. More than 8 bits become 10, the most that
    the encoder has.
    """
    form = frame.format
    mirrored, turns = frames.turns_of(frame)
    sparse = (form.chroma_height(64), form.chroma_width(64))
    chroma = {(64, 32): "422", (64, 64): "444"}.get(sparse, "420")
    tags: dict[str, int] = {
        "matrix": int(frame.colorspace),
        "primaries": int(frame.color_primaries),
        "transfer": int(frame.color_trc),
        "range": FULL if form.name.startswith("yuvj") else int(frame.color_range),
    }
    if not _is_yuv(form):
        span = (tags["range"] or FULL) if frames.is_grey(form) else 1
        chroma, tags = "420", {"matrix": 1, "primaries": 1, "transfer": 1, "range": span}
    if turns % 2 and chroma == "422":
        chroma = "444"  # a turn makes it 4:4:0, which H.264 does not have
    rows, columns = _SPARSE[chroma]
    height, width = (frame.height, frame.width)[:: -1 if turns % 2 else 1]
    return Layout(
        height=height + height % rows,
        width=width + width % columns,
        chroma=chroma,
        bits=10 if max(c.bits for c in form.components) > 8 else 8,
        turns=turns,
        mirrored=mirrored,
        **tags,
    )


def read(frame: av.VideoFrame, layout: Layout) -> Planes:
    """The planes of a decoded frame: upright, an odd side lengthened by its last row or column."""
    if frame.format.name.replace("yuvj", "yuv") != layout.format:
        frame = _rearranged(frame, layout)
    made = []
    for plane, shape in zip(frame.planes, layout.shapes):
        upright = frames.upright(_samples(plane, layout.dtype), layout.mirrored, layout.turns)
        spare = [(0, max(0, want - have)) for want, have in zip(shape, upright.shape)]
        made.append(np.ascontiguousarray(np.pad(upright, spare, mode="edge")))
    return tuple(made)


def _rearranged(frame: av.VideoFrame, layout: Layout) -> av.VideoFrame:
    """A frame in the layout's pixel format, its colours as they are."""
    full = ColorRange.JPEG
    # On several threads swscale leaves rows of small 10 bit frames grey now and then.
    if frames.is_grey(frame.format):
        # To swscale grey is in full range whatever one says; into full range it stays what it is.
        return frame.reformat(
            format=layout.format, src_color_range=full, dst_color_range=full, threads=1
        )
    # The same matrix and range on both sides: only the arrangement of the samples changes.
    matrix = Colorspace.ITU709 if _weights(layout) == _BT709 else Colorspace.ITU601
    span = full if layout.range == FULL else ColorRange.MPEG
    return frame.reformat(
        format=layout.format,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=span if _is_yuv(frame.format) else full,
        dst_color_range=span,
        threads=1,
    )


def write(planes: Planes, layout: Layout) -> av.VideoFrame:
    """A frame for the encoder."""
    frame = av.VideoFrame(layout.width, layout.height, layout.format)
    for plane, samples in zip(frame.planes, planes):
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        values = np.ascontiguousarray(samples, layout.dtype).view(np.uint8)
        rows[:, : values.shape[1]] = values
        plane.update(rows)
    return frame


def same(first: Planes, second: Planes) -> bool:
    """Whether two pictures are equal in every sample."""
    return all(np.array_equal(a, b) for a, b in zip(first, second))


def rgb(planes: tuple[Array, ...], layout: Layout) -> Array:
    """Three planes -> fp32 [H, W, 3], [0, 1] being what is on show. Traceable."""
    import jax.numpy as jnp

    base, luma_span, middle, chroma_span = _levels(layout)
    y, *colours = (plane.astype(jnp.float32) for plane in planes)
    y = (y - base) / luma_span
    blue, red = (_spread((c - middle) / chroma_span, layout) for c in colours)
    of_red, of_blue = _weights(layout)
    r = y + 2 * (1 - of_red) * red
    b = y + 2 * (1 - of_blue) * blue
    g = (y - of_red * r - of_blue * b) / (1 - of_red - of_blue)
    return jnp.stack((r, g, b), axis=-1)


def planes(picture: Array, layout: Layout) -> tuple[Array, ...]:
    """fp32 [H, W, 3] -> three planes of whole numbers. The inverse of `rgb`. Traceable."""
    import jax.numpy as jnp

    base, luma_span, middle, chroma_span = _levels(layout)
    of_red, of_blue = _weights(layout)
    r, g, b = (picture[..., k] for k in range(3))
    y = of_red * r + (1 - of_red - of_blue) * g + of_blue * b
    blue = _gather((b - y) / (2 * (1 - of_blue)), layout)
    red = _gather((r - y) / (2 * (1 - of_red)), layout)
    values = (y * luma_span + base, blue * chroma_span + middle, red * chroma_span + middle)
    most = 2**layout.bits - 1
    return tuple(jnp.clip(jnp.round(v), 0, most).astype(layout.dtype) for v in values)


def _is_yuv(form: av.VideoFormat) -> bool:
    return len(form.components) >= 3 and not form.is_rgb and not form.has_palette


def _weights(layout: Layout) -> tuple[float, float]:
    if layout.matrix == UNNAMED and min(layout.height, layout.width) < 720:
        return _LUMA[5]  # by custom, what is not HD is BT.601
    return _LUMA.get(layout.matrix, _BT709)


def _levels(layout: Layout) -> tuple[float, float, float, float]:
    """Luma's black and span, chroma's middle and span."""
    step = 2.0 ** (layout.bits - 8)
    if layout.range == FULL:
        return 0.0, 256 * step - 1, 128 * step, 256 * step - 1
    return 16 * step, 219 * step, 128 * step, 224 * step


def _spread(chroma: Array, layout: Layout) -> Array:
    rows, columns = _SPARSE[layout.chroma]
    return chroma.repeat(rows, axis=0).repeat(columns, axis=1)


def _gather(chroma: Array, layout: Layout) -> Array:
    rows, columns = _SPARSE[layout.chroma]
    height, width = chroma.shape
    return chroma.reshape(height // rows, rows, width // columns, columns).mean(axis=(1, 3))


def _samples(plane: Any, dtype: Any) -> np.ndarray:
    """A decoder's plane, without the bytes that fill its rows up."""
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    used = rows[:, : plane.width * np.dtype(dtype).itemsize]
    return np.ascontiguousarray(used).view(dtype)
