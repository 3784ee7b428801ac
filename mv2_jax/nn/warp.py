"""Backward bilinear warping, the one primitive of every frame interpolator here.

Shapes use the letters of the house: B batch, H and W the image's plane, C channels, and `...` for
any arrangement of sample points. Points and flows are in pixels, (x, y) in this order, x to the
right and y down, as in the RIFE and EDSC papers.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

IMPLS = ("corners", "quad", "tiles")

# Of "tiles": points a side of a tile, and by how many pixels the window that serves them is larger
# on every side. Flows that differ by twice as much within a tile still fit.
_TILE, _REACH = 32, 16
_AT_ONCE = 2**21  # points that are gathered at a time


def pixel_grid(height: int, width: int) -> Array:
    """The (x, y) of every pixel centre, [H, W, 2] fp32; the first pixel is (0, 0)."""
    x = jnp.broadcast_to(jnp.arange(width, dtype=jnp.float32)[None, :], (height, width))
    y = jnp.broadcast_to(jnp.arange(height, dtype=jnp.float32)[:, None], (height, width))
    return jnp.stack((x, y), axis=-1)


def warp(image: Array, flow: Array, *, impl: str | None = None) -> Array:
    """`image` read at every pixel displaced by `flow`: [B, H, W, C], [B, H, W, 2] -> [B, H, W, C].

    Exact against torch's `grid_sample(bilinear, border, align_corners=True)` up to rounding.
    """
    height, width = flow.shape[1:3]
    points = pixel_grid(height, width)[None] + flow.astype(jnp.float32)
    return sample(image, points, impl=impl, dense=True)


def sample(image: Array, points: Array, *, impl: str | None = None, dense: bool = False) -> Array:
    """Bilinear samples of `image` [B, H, W, C] at `points` [B, ..., 2] -> [B, ..., C].

    Points outside the plane read its border. Coordinates are computed in fp32 whatever the image's
    type: bf16 holds eight bits, and turns column 500.3 into 500.0. The result has the image's type.

    `impl` "corners" gathers four times from the image; "quad" first lays each pixel's four corners
    side by side and gathers once, four times the memory for a quarter of the scattered reads;
    "tiles" gathers nothing: it cuts a window of the image for every tile of 32 x 32 points, and
    multiplies it by hat functions, as matrices. Where some tile's points do not fit its window, it
    does what "quad" does, so all three are exact.

    None chooses by measurement. On CPU "corners" (0.046 s for 1056 x 1056 pixels, "quad" 0.112 s).
    On TPU v5e, where a scattered read moves a whole tile of memory, the compiler estimates, for
    three channels of that plane, 0.40 s for "corners", 0.10 s for "quad" and 0.0017 s for the
    windows of "tiles": so "tiles" where the points are `dense`, that is points[..., y, x, :] lie
    about a pixel apart as a flow's do, and "quad" where they are not.

    Raises:
        ValueError: mismatched shapes or an unknown `impl`.
    """
    if image.ndim != 4 or points.shape[0] != image.shape[0] or points.shape[-1] != 2:
        raise ValueError(
            f"sample needs an image [B, H, W, C] and points [B, ..., 2] of the same B; "
            f"got {image.shape} and {points.shape}"
        )
    if impl is None:
        on_tpu = "tiles" if dense else "quad"
        impl = on_tpu if jax.default_backend() == "tpu" else "corners"
    if impl not in IMPLS:
        raise ValueError(f"unknown warp impl {impl!r}; there are {', '.join(IMPLS)}")
    if impl == "tiles":
        return _by_tiles(image, points)
    return _by_gathers(image, points, _gather_quad if impl == "quad" else _gather_corners)


def _by_gathers(image: Array, points: Array, gather: Callable[..., tuple[Array, ...]]) -> Array:
    batch, _, _, channels = image.shape
    flat = points.astype(jnp.float32).reshape(batch, -1, 2)
    count = flat.shape[1]
    if count <= _AT_ONCE:
        return _gathered(image, flat, gather).reshape(*points.shape[:-1], channels)
    # What is gathered takes several times the memory of the result: of large planes a part a time.
    parts = -(-count // _AT_ONCE)
    each = -(-count // parts)
    flat = jnp.pad(flat, ((0, 0), (0, parts * each - count), (0, 0)))
    flat = flat.reshape(batch, parts, each, 2).swapaxes(0, 1)
    made = lax.map(lambda some: _gathered(image, some, gather), flat)
    made = made.swapaxes(0, 1).reshape(batch, parts * each, channels)[:, :count]
    return made.reshape(*points.shape[:-1], channels)


def _gathered(image: Array, flat: Array, gather: Callable[..., tuple[Array, ...]]) -> Array:
    """Samples of [B, H, W, C] at fp32 points [B, N, 2] -> [B, N, C]."""
    height, width = image.shape[1:3]
    column, right = _cell(flat[..., 0], width)
    row, down = _cell(flat[..., 1], height)

    top_left, top_right, bottom_left, bottom_right = gather(image, row, column)

    right, down = right[..., None].astype(image.dtype), down[..., None].astype(image.dtype)
    # Weighted sums rather than a + (b - a) * f: exact at both ends, so no flow changes nothing.
    top = top_left * (1 - right) + top_right * right
    bottom = bottom_left * (1 - right) + bottom_right * right
    return top * (1 - down) + bottom * down


def _by_tiles(image: Array, points: Array) -> Array:
    """Letters: G grids of points, N tiles of all grids, S points of a tile, Y and X a window's."""
    batch, height, width, channels = image.shape
    rows, columns = points.shape[-3:-1] if points.ndim > 3 else (1, points.shape[1])
    grids = points.astype(jnp.float32).reshape(-1, rows, columns, 2)
    tall, wide = -(-rows // _TILE), -(-columns // _TILE)
    spare = ((0, 0), (0, tall * _TILE - rows), (0, wide * _TILE - columns))

    def window(axis: int, size: int) -> tuple[Array, Array, Array, int]:
        """Along one side: coordinates [N, S], first pixels [N], which fit [N], the length."""
        at = jnp.pad(jnp.clip(grids[..., axis], 0.0, size - 1.0), spare, mode="edge")
        at = at.reshape(-1, tall, _TILE, wide, _TILE).swapaxes(2, 3).reshape(-1, _TILE**2)
        length = min(_TILE + 2 * _REACH, size)
        low, high = at.min(axis=1), at.max(axis=1)
        middle = jnp.floor((low + high - (length - 1)) / 2).astype(jnp.int32)
        first = jnp.clip(middle, 0, size - length)
        return at, first, (low >= first) & (high <= first + (length - 1)), length

    (x, left, fits_x, across), (y, top, fits_y, down) = (
        window(axis, size) for axis, size in ((0, width), (1, height))
    )
    owner = jnp.arange(x.shape[0]) // (x.shape[0] // batch)

    def cut(image: Array) -> Array:
        def one(b: Array, row: Array, column: Array) -> Array:
            return lax.dynamic_slice(image, (b, row, column, 0), (1, down, across, channels))[0]

        windows = jax.vmap(one)(owner, top, left).astype(jnp.float32)
        # Half precision in these products would be half precision of the pixels.
        across_rows = jnp.einsum(
            "nsy,nyxc->nsxc", _hats(y, top, down), windows, precision=lax.Precision.HIGHEST
        )
        new = (across_rows * _hats(x, left, across)[..., None]).sum(axis=2)
        new = new.reshape(-1, tall, wide, _TILE, _TILE, channels).swapaxes(2, 3)
        new = new.reshape(-1, tall * _TILE, wide * _TILE, channels)[:, :rows, :columns]
        return new.reshape(*points.shape[:-1], channels).astype(image.dtype)

    def gather(image: Array) -> Array:
        return _by_gathers(image, points, _gather_quad)

    return lax.cond((fits_x & fits_y).all(), cut, gather, image)


def _hats(at: Array, first: Array, length: int) -> Array:
    """Weights [N, S, length] of a window's pixels: 1 at the coordinates [N, S], 0 a pixel away."""
    pixels = first[:, None] + jnp.arange(length)[None]
    distance = jnp.abs(at[:, :, None] - pixels[:, None].astype(jnp.float32))
    return jnp.maximum(0.0, 1.0 - distance)


def _cell(coordinate: Array, size: int) -> tuple[Array, Array]:
    """Clamped coordinate -> (index of the cell's first pixel, fraction towards the second).

    The last cell starts at size - 2, so that the second pixel always exists; the index is clamped
    again as an integer, because a NaN coordinate must not become a read outside the image.
    """
    clamped = jnp.clip(coordinate, 0.0, size - 1.0)
    first = jnp.clip(jnp.floor(clamped).astype(jnp.int32), 0, max(size - 2, 0))
    return first, clamped - first.astype(jnp.float32)


def _gather_corners(image: Array, row: Array, column: Array) -> tuple[Array, ...]:
    batch, height, width, channels = image.shape
    flat = image.reshape(batch, height * width, channels)
    # A plane one pixel wide (or high) has no second pixel: both corners are the same one.
    right, down = min(1, width - 1), width * min(1, height - 1)
    corner = row * width + column
    return tuple(_take(flat, corner + offset) for offset in (0, right, down, down + right))


def _gather_quad(image: Array, row: Array, column: Array) -> tuple[Array, ...]:
    batch, height, width, channels = image.shape
    below = jnp.concatenate((image[:, 1:], image[:, -1:]), axis=1)
    pair = jnp.concatenate((image, below), axis=-1)
    beside = jnp.concatenate((pair[:, :, 1:], pair[:, :, -1:]), axis=2)
    quad = jnp.concatenate((pair, beside), axis=-1).reshape(batch, height * width, 4 * channels)
    taken = _take(quad, row * width + column)
    top_left, bottom_left, top_right, bottom_right = jnp.split(taken, 4, axis=-1)
    return top_left, top_right, bottom_left, bottom_right


def _take(flat: Array, index: Array) -> Array:
    """Rows of [B, H*W, C] by [B, N] -> [B, N, C]; the indices are known to lie inside."""
    return jnp.take_along_axis(flat, index[..., None], axis=1, mode="promise_in_bounds")
