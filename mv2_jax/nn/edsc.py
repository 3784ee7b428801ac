"""Enhanced deformable separable convolution, EDSC (arXiv 2006.08070): a frame made of a frame.

    out(y, x) = sum over taps i, j < S of  V_i H_j M_ij  I(y + i - c + dy_ij, x + j - c + dx_ij)

Every pixel has its own separable kernel (V, H: any sign, nothing sums to one), its own mask over
the taps, and for each tap an offset of its own. Reads are bilinear.

S * S reads of a frame's size would fill the memory (50 frames of them for two neighbours), so a
scan goes from tap to tap and keeps the sum alone. What a network predicted on a smaller plane is
brought to full size inside the scan, too: one tap's offsets and weight at a time.

Letters: B batch, H and W the frame's plane, h and w the plane of the predictions, S taps a side.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from mv2_jax.nn.bilinear import enlarge
from mv2_jax.nn.warp import pixel_grid, sample


class Taps(NamedTuple):
    """What a network predicts for one neighbour, on a plane h x w.

    `rows`, `columns`: offsets dy and dx in pixels of the frame, [B, h, w, S * S], taps row by row.
    `vertical`, `horizontal`: the separable kernels V and H, [B, h, w, S].
    `mask`: M, [B, h, w, S * S].
    """

    rows: Array
    columns: Array
    vertical: Array
    horizontal: Array
    mask: Array


def synthesise(image: Array, taps: Taps, *, original: bool = False) -> Array:
    """The sum above: `image` [B, H, W, C], `taps` on a plane that divides it -> fp32 [B, H, W, C].

    Offsets and weights (the product of V, H and M) are enlarged bilinearly where h < H.

    `original` does as the public CUDA kernel does, whose trained weights need it: its taps are not
    centred but reach from three pixels before to one after (c = 3, not (S - 1) / 2), and what it
    reads from beyond its border of two repeated pixels counts double for each axis it lies outside.
    Else c is the centre, and what lies outside reads the border.

    Raises:
        ValueError: planes or tap counts that do not fit together.
    """
    batch, height, width, _ = image.shape
    size = taps.vertical.shape[-1]
    scale = height // taps.rows.shape[1]
    if taps.rows.shape != (batch, height // scale, width // scale, size * size) or (
        height % scale or width % scale or taps.horizontal.shape[-1] != size
    ):
        raise ValueError(
            f"EDSC over an image {image.shape} wants offsets [B, h, w, S * S] and kernels "
            f"[B, h, w, S] on a plane that divides it evenly; got {taps.rows.shape} and "
            f"{taps.vertical.shape}, {taps.horizontal.shape}"
        )
    image = image.astype(jnp.float32)
    centre = size // 2 + 1 if original else size // 2
    grid = pixel_grid(height, width)[None] - centre

    def leading(x: Array, *shape: int) -> Array:
        """[B, h, w, n] -> [*shape, B, h, w, 1], the n entries as the scans take them."""
        x = jnp.moveaxis(x.astype(jnp.float32), -1, 0)[..., None]
        return x.reshape(*shape, *x.shape[1:])

    # Recomputed on the way back: the reads of all taps are never kept.
    @jax.checkpoint
    def read(tap: tuple[Array, ...]) -> Array:
        dx, dy, weight, j, i = tap
        plane = enlarge(jnp.concatenate((dx, dy, weight), axis=-1), scale)
        points = grid + jnp.stack((j, i)).astype(jnp.float32)[None, None, None] + plane[..., :2]
        weight = plane[..., 2:]
        if original:
            weight = weight * _times_outside(points, height, width)
        return sample(image, points) * weight

    def row(total: Array, taps_of_row: tuple[Array, ...]) -> tuple[Array, None]:
        dx, dy, mask, vertical, i = taps_of_row

        def column(total: Array, tap: tuple[Array, ...]) -> tuple[Array, None]:
            dx, dy, mask, horizontal, j = tap
            return total + read((dx, dy, vertical * horizontal * mask, j, i)), None

        return lax.scan(column, total, (dx, dy, mask, across, counts))

    counts = jnp.arange(size)
    across, down = leading(taps.horizontal, size), leading(taps.vertical, size)
    each = (leading(x, size, size) for x in (taps.columns, taps.rows, taps.mask))
    total, _ = lax.scan(row, jnp.zeros_like(image), (*each, down, counts))
    return total


def _times_outside(points: Array, height: int, width: int) -> Array:
    """2 for each axis along which the public kernel clamps both corners of a read: [..., 1].

    Its image is padded by two pixels. A coordinate at the padded end or beyond either end has both
    its corners on the same pixel, each with the whole weight.
    """
    x, y = points[..., 0], points[..., 1]
    across = jnp.where((x < -2) | (x >= width + 1), 2.0, 1.0)
    down = jnp.where((y < -2) | (y >= height + 1), 2.0, 1.0)
    return (across * down)[..., None]
