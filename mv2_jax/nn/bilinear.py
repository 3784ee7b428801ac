"""Bilinear change of size by whole factors, as torch's `interpolate(align_corners=False)`.

A cell is the square of pixels that one pixel of the smaller plane covers. Nothing here smooths
before it reduces: reduction by s reads the middle one (s = 1) or 2 x 2 pixels (s even) of a cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def middle(scale: int) -> tuple[int, ...]:
    """Which rows (or columns) of a cell a reduction by `scale`, 1 or even, averages."""
    return (0,) if scale == 1 else (scale // 2 - 1, scale // 2)


def reduce(x: Array, scale: int) -> Array:
    """[B, H, W, C] -> [B, H/scale, W/scale, C]; `scale` (1 or even) divides both sides."""
    if scale == 1:
        return x
    batch, height, width, channels = x.shape
    cells = x.reshape(batch, height // scale, scale, width // scale, scale, channels)
    low, high = middle(scale)
    return cells[:, :, low : high + 1, :, low : high + 1].mean(axis=(2, 4))


def enlarge(x: Array, scale: int) -> Array:
    """[B, h, w, C] -> [B, h*scale, w*scale, C]; beyond the outer pixels' centres it is flat."""
    return enlarge_at(x, scale, range(scale))


def enlarge_at(x: Array, scale: int, inside: Sequence[int]) -> Array:
    """`enlarge`, computed only at rows and columns `inside` of every cell.

    [B, h, w, C] -> [B, h*n, w*n, C] with n = len(inside).
    """
    offsets = np.array([(p + 0.5) / scale - 0.5 for p in inside], np.float32)  # of a cell's centre
    if not offsets.any() and len(offsets) == 1:
        return x
    for axis in (1, 2):
        before = jnp.concatenate((_cut(x, axis, 0, 1), _cut(x, axis, 0, -1)), axis)
        after = jnp.concatenate((_cut(x, axis, 1, None), _cut(x, axis, -1, None)), axis)
        centre, ahead, behind = (jnp.expand_dims(y, axis + 1) for y in (x, after - x, before - x))
        along = [len(offsets) if i == axis + 1 else 1 for i in range(x.ndim + 1)]
        spread = (
            centre
            + ahead * np.maximum(offsets, 0).reshape(along).astype(x.dtype)
            + behind * np.maximum(-offsets, 0).reshape(along).astype(x.dtype)
        )
        x = spread.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
    return x


def _cut(x: Array, axis: int, start: int, stop: int | None) -> Array:
    return lax.slice_in_dim(x, start, stop, axis=axis)
