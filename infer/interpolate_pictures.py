"""Pictures as planes of samples, out of decoders and into encoders, one layout or another.

What comes out of a decoder stays in its own values: an 8 bit full range picture is never squeezed
through another range, and 10 bits stay 10. Only the interpolator sees RGB, by `rgb` and `from_rgb`,
which undo each other exactly: chroma is enlarged by repeating and reduced by averaging.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from mv2_jax.infer import frames
from mv2_jax.infer.interpolate_layout import (
    BT709,
    FULL,
    RGB,
    SPARSE,
    Layout,
    is_full,
    levels,
    name_of,
    weights,
)

if TYPE_CHECKING:
    from jax import Array

Planes = tuple[np.ndarray, ...]
"""Y, Cb, Cr, or G, B, R as FFmpeg orders them; then alpha, where the layout has it."""


def read(frame: av.VideoFrame, layout: Layout) -> Planes:
    """The planes of a decoded frame: upright, an odd side lengthened by its last row or column.

    `layout` is the frame's own (`layout_of`).
    """
    form = frame.format
    if frames.is_grey(form):
        return _grey(frame, layout)
    if form.name.replace("yuvj", "yuv") != (stored := _unturned(layout)):
        frame = _rearranged(frame, layout, stored)
    return tuple(
        _upright(_samples(plane, layout.dtype), layout, shape)
        for plane, shape in zip(frame.planes, layout.shapes)
    )


def _unturned(layout: Layout) -> str:
    """The pixel format of frames that have the layout once they are upright."""
    chroma = layout.chroma
    if layout.turns % 2:
        chroma = {"422": "440", "440": "422"}.get(chroma, chroma)
    return name_of(chroma, layout.bits, layout.alpha)


def _grey(frame: av.VideoFrame, layout: Layout) -> Planes:
    """Brightness as it is, and chroma that says nothing."""
    deep = f"{layout.bits}le" if layout.bits > 8 else ""
    stored = f"ya{deep or 8}" if layout.alpha else f"gray{deep}"
    if frame.format.name != stored:
        # To swscale grey is in full range whatever one says; into full range it stays what it is.
        full = {"src_color_range": ColorRange.JPEG, "dst_color_range": ColorRange.JPEG}
        frame = frame.reformat(format=stored, threads=1, **full)
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    each = 1 + layout.alpha
    used = rows[:, : frame.width * each * np.dtype(layout.dtype).itemsize]
    values = np.ascontiguousarray(used).view(layout.dtype)
    made = [_upright(values[:, k::each], layout, layout.shapes[0]) for k in range(each)]
    middle = np.full(layout.shapes[1], 1 << (layout.bits - 1), layout.dtype)
    return (made[0], middle, middle, *made[1:])


def _upright(samples: np.ndarray, layout: Layout, shape: tuple[int, int]) -> np.ndarray:
    upright = frames.upright(samples, layout.mirrored, layout.turns)
    return np.ascontiguousarray(_lengthened(upright, shape))


def _rearranged(frame: av.VideoFrame, layout: Layout, stored: str) -> av.VideoFrame:
    """A frame in another pixel format, its colours as they are."""
    # The same matrix and range on both sides: only the arrangement of the samples changes.
    matrix = Colorspace.ITU709 if weights(layout) == BT709 else Colorspace.ITU601
    span = ColorRange.JPEG if layout.range == FULL else ColorRange.MPEG
    # On several threads swscale leaves rows of small 10 bit frames grey now and then.
    return frame.reformat(
        format=stored,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=span,
        dst_color_range=span,
        threads=1,
    )


def convert(samples: Planes, given: Layout, wanted: Layout) -> Planes:
    """Planes of one layout as those of another one of the same turns.

    What both can hold is kept exactly: samples of sparse chroma are repeated, and bits added below.
    Alpha that is dropped leaves the picture over white.
    """
    if given == wanted:
        return samples
    if given.alpha and not wanted.alpha:
        samples, given = _over_white(samples, given), dataclasses.replace(given, alpha=False)
    if (given.chroma == RGB) != (wanted.chroma == RGB):
        colours = rgb(samples[:3], given, np)
        made = from_rgb(_lengthened(colours, wanted.shapes[0]), wanted, np)
    else:
        made = tuple(
            _levelled(_resampled(plane, given, wanted, k), given, wanted, k)
            for k, plane in enumerate(samples[:3])
        )
    if not wanted.alpha:
        return made
    top = 2**wanted.bits - 1
    alpha = np.full(wanted.shapes[0], top, wanted.dtype)
    if given.alpha:
        spread = samples[3].astype(np.float64) * (top / (2**given.bits - 1))
        alpha = np.round(_lengthened(spread, wanted.shapes[0])).astype(wanted.dtype)
    return (*made, alpha)


def _lengthened(x: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[H, W, ...] with its last row and column repeated to `shape`, or cut to it."""
    x = x[: shape[0], : shape[1]]
    spare = [(0, want - have) for want, have in zip(shape, x.shape)]
    return np.pad(x, spare + [(0, 0)] * (x.ndim - 2), mode="edge")


def _resampled(plane: np.ndarray, given: Layout, wanted: Layout, k: int) -> np.ndarray:
    """A plane with as many samples as the other layout has, repeated or averaged."""
    if k:
        for axis, (old, new) in enumerate(zip(SPARSE[given.chroma], SPARSE[wanted.chroma])):
            if old > new:
                plane = plane.repeat(old // new, axis=axis)
            elif new > old:
                each = new // old
                spare = -plane.shape[axis] % each
                pad = [(0, spare if a == axis else 0) for a in (0, 1)]
                plane = np.pad(plane, pad, mode="edge").astype(np.float32)
                shape = list(plane.shape)
                shape[axis : axis + 1] = [shape[axis] // each, each]
                plane = np.round(plane.reshape(shape).mean(axis=axis + 1))
    return _lengthened(plane, wanted.shapes[k])


def _levelled(plane: np.ndarray, given: Layout, wanted: Layout, k: int) -> np.ndarray:
    """Samples of plane `k` in another number of bits, or another range."""
    if given.bits == wanted.bits and is_full(given) == is_full(wanted):
        return plane.astype(wanted.dtype)
    (base, span), (new_base, new_span) = (
        levels(layout)[2:] if k and layout.chroma != RGB else levels(layout)[:2]
        for layout in (given, wanted)
    )
    values = np.round((plane.astype(np.float64) - base) * (new_span / span) + new_base)
    return np.clip(values, 0, 2**wanted.bits - 1).astype(wanted.dtype)


def _over_white(planes: Planes, layout: Layout) -> Planes:
    """Three planes, blended with white by the fourth."""
    alpha = planes[3] / np.float32(2**layout.bits - 1)
    if alpha.min() == 1:
        return planes[:3]
    base, luma_span, middle, _ = levels(layout)
    top = 2**layout.bits - 1
    white = (top,) * 3 if layout.chroma == RGB else (base + luma_span, middle, middle)
    out = []
    for k, (plane, level) in enumerate(zip(planes, white)):
        share = alpha
        if k and layout.chroma != RGB:
            rows, columns = SPARSE[layout.chroma]
            height, width = plane.shape
            share = alpha.reshape(height, rows, width, columns).mean(axis=(1, 3))
        out.append(np.round(plane * share + level * (1 - share)).astype(layout.dtype))
    return tuple(out)


def clear(planes: Planes, layout: Layout) -> bool:
    """Whether any of a picture can be seen through."""
    return layout.alpha and bool(planes[3].min() < 2**layout.bits - 1)


def write(planes: Planes, layout: Layout, stored: str | None = None) -> av.VideoFrame:
    """A frame for an encoder, in the pixel format `stored`, an arrangement of the layout's own."""
    frame = av.VideoFrame(layout.width, layout.height, layout.format)
    for plane, samples in zip(frame.planes, planes):
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        values = np.ascontiguousarray(samples, layout.dtype).view(np.uint8)
        rows[:, : values.shape[1]] = values
        plane.update(rows)
    if stored not in (None, layout.format):
        frame = _rearranged(frame, layout, stored)
    return frame


def same(first: Planes, second: Planes) -> bool:
    """Whether two pictures are equal in every sample."""
    return all(np.array_equal(a, b) for a, b in zip(first, second))


def rgb(planes: tuple[Array, ...], layout: Layout, xp: Any) -> Array:
    """Three planes -> fp32 [H, W, 3], [0, 1] being what is on show; `xp` is numpy or jax.numpy."""
    base, luma_span, middle, chroma_span = levels(layout)
    y, *colours = (plane.astype(xp.float32) for plane in planes)
    if layout.chroma == RGB:
        return xp.stack((colours[1], y, colours[0]), axis=-1) / xp.float32(luma_span)
    y = (y - base) / luma_span
    blue, red = (_spread((c - middle) / chroma_span, layout) for c in colours)
    of_red, of_blue = weights(layout)
    r = y + 2 * (1 - of_red) * red
    b = y + 2 * (1 - of_blue) * blue
    g = (y - of_red * r - of_blue * b) / (1 - of_red - of_blue)
    return xp.stack((r, g, b), axis=-1)


def from_rgb(picture: Array, layout: Layout, xp: Any) -> tuple[Array, ...]:
    """fp32 [H, W, 3] -> three planes of whole numbers. The inverse of `rgb`."""
    base, luma_span, middle, chroma_span = levels(layout)
    of_red, of_blue = weights(layout)
    r, g, b = (picture[..., k] for k in range(3))
    if layout.chroma == RGB:
        values = tuple(c * luma_span for c in (g, b, r))
    else:
        y = of_red * r + (1 - of_red - of_blue) * g + of_blue * b
        blue = _gather((b - y) / (2 * (1 - of_blue)), layout)
        red = _gather((r - y) / (2 * (1 - of_red)), layout)
        values = (y * luma_span + base, blue * chroma_span + middle, red * chroma_span + middle)
    most = 2**layout.bits - 1
    return tuple(xp.clip(xp.round(v), 0, most).astype(layout.dtype) for v in values)


def _spread(chroma: Array, layout: Layout) -> Array:
    rows, columns = SPARSE[layout.chroma]
    return chroma.repeat(rows, axis=0).repeat(columns, axis=1)


def _gather(chroma: Array, layout: Layout) -> Array:
    rows, columns = SPARSE[layout.chroma]
    height, width = chroma.shape
    return chroma.reshape(height // rows, rows, width // columns, columns).mean(axis=(1, 3))


def _samples(plane: Any, dtype: Any) -> np.ndarray:
    """A decoder's plane, without the bytes that fill its rows up."""
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    used = rows[:, : plane.width * np.dtype(dtype).itemsize]
    return np.ascontiguousarray(used).view(dtype)
