"""A plane in overlapping tiles, so that memory does not grow with it: diffusers' rule for VAEs.

Tiles begin every three quarters of their side. What comes out of one is faded into its neighbours'
above and to the left over a quarter of its side. Norms and attention see a tile alone, so that the
result is near that of the whole plane, not equal.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def tiled(
    function: Callable[[Array], Array], x: Float[Array, "B H W C"], side: int, made: int
) -> Float[Array, "B H2 W2 C2"]:
    """`function(x)` of x [B, H, W, C], a tile at a time.

    Args:
        side, made: cells along a tile in x and in the result; both are multiples of four.
    """
    if max(x.shape[1:3]) <= side:
        return function(x)
    step, fade = side * 3 // 4, made // 4
    keep, above, rows = made - fade, [], []
    for top in range(0, x.shape[1], step):
        row: list[Array] = []
        for column, left in enumerate(range(0, x.shape[2], step)):
            tile = function(x[:, top : top + side, left : left + side])
            if above:
                tile = _faded(above[column], tile, fade, 1)
            if row:
                tile = _faded(row[-1], tile, fade, 2)
            row.append(tile)
        rows.append(jnp.concatenate([tile[:, :keep, :keep] for tile in row], axis=2))
        above = row
    return jnp.concatenate(rows, axis=1)


def _faded(
    before: Float[Array, "B H1 W1 C"], tile: Float[Array, "B H W C"], fade: int, axis: int
) -> Float[Array, "B H W C"]:
    """A tile whose first cells along an axis come out of the last ones of the tile before."""
    count = min(fade, before.shape[axis], tile.shape[axis])
    share = jnp.expand_dims(jnp.arange(count) / count, [d for d in range(tile.ndim) if d != axis])
    size = before.shape[axis]
    last = jax.lax.slice_in_dim(before, size - count, size, axis=axis)
    first = jax.lax.slice_in_dim(tile, 0, count, axis=axis)
    rest = jax.lax.slice_in_dim(tile, count, tile.shape[axis], axis=axis)
    return jnp.concatenate([last * (1 - share) + first * share, rest], axis=axis)
