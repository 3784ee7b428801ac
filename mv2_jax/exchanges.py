"""What the devices of a mesh exchange within a network: edges of planes, frames for positions,
tokens for heads, and sums. What lies where is said in mv2_jax.shards; without a mesh these do
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mv2_jax import shards


def _true(here: int) -> jax.Array:
    """[here]: which of a device's rows, or of the tokens in them, are the plane's."""
    cells = shards.cells_here()
    left = shards.layout().cells - lax.axis_index(shards.layout().rows) * cells
    return jnp.arange(here) < left * (here // cells)


def with_halo(x: jax.Array, before: int, after: int) -> jax.Array:
    """This device's rows of split planes [B, h, W, C], between the last `before` of the device
    above and the first `after` of the one below. Zeros stand where the plane has ended.
    """
    axes, here = shards.layout().rows, x.shape[1]
    last = shards.count(axes) - 1
    x = jnp.where(_true(here)[None, :, None, None], x, 0)
    rows = [x]
    if before:
        down = [(i, i + 1) for i in range(last)]
        rows.insert(0, lax.ppermute(x[:, here - before :], axes, down))
    if after:
        up = [(i + 1, i) for i in range(last)]
        rows.append(lax.ppermute(x[:, :after], axes, up))
    return jnp.concatenate(rows, 1)


def by_rows(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A convolution of split planes: what would be padding comes from the devices around."""

    def run(
        x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **kwargs: Any
    ) -> jax.Array:
        (before, after), across = padding
        if before or after:
            x = with_halo(x, before, after)
        return product(x, kernel, strides, ((0, 0), across), **kwargs)

    return run


def mean_of_clip(x: jax.Array, frames: int) -> jax.Array:
    """The mean [B, C] of x [B, t * L, C] over L and all `frames` of a clip, of which t are here;
    where planes are split, of one frame, over all of its rows."""
    if shards.layout().rows:
        here = x.shape[1]
        true = _true(here)[None, :, None]
        return lax.psum(jnp.where(true, x, 0).sum(1), shards.layout().rows) / shards.rows_in_all(
            here
        )
    here = shards.frames_here(frames)
    if here == frames:
        return x.mean(1)
    axes = shards.layout().over
    means = x.reshape(x.shape[0], here, -1, x.shape[-1]).mean(2)
    true = (lax.axis_index(axes) * here + jnp.arange(here) < frames).astype(x.dtype)
    return lax.psum((means * true[None, :, None]).sum(1), axes) / frames


def to_positions(x: jax.Array) -> jax.Array:
    """x [B, t, L, C], all positions of this device's frames -> [B, T, l, C], all frames of its
    share of positions."""
    split = shards.layout()
    if not split.frames:
        return x
    pad = -x.shape[2] % shards.count(split.over)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, pad), (0, 0)))
    x = lax.all_to_all(x, split.over, split_axis=2, concat_axis=1, tiled=True)
    return x[:, : split.frames]


def to_frames(x: jax.Array, positions: int) -> jax.Array:
    """The inverse of `to_positions`, for L `positions` in all."""
    split = shards.layout()
    if not split.frames:
        return x
    pad = -split.frames % shards.count(split.over)
    x = jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0)))
    x = lax.all_to_all(x, split.over, split_axis=1, concat_axis=2, tiled=True)
    return x[:, :, :positions]


def takes_heads(heads: int, devices: int) -> bool:
    """How spatial attention meets the tokens that lie on other devices.

    True: each device takes all tokens of its part of the heads, and gives the result back
    (DeepSpeed-Ulysses, arXiv 2309.14509). That moves four tensors of its own tokens; to gather the
    keys and values, or to pass them round in a ring, moves two of all tokens. So it is what is done
    where heads divide, and tokens lie on more than two devices.

    Args:
        heads: those that this device has.
        devices: over how many tokens are split.
    """
    return devices > 2 and heads % devices == 0


def to_heads(x: jax.Array, tokens: int) -> jax.Array:
    """x [B, l, N, D], all heads of this device's tokens of a plane -> [B, L, n, D], all `tokens` of
    its part of the heads."""
    x = lax.all_to_all(x, shards.layout().tokens, split_axis=2, concat_axis=1, tiled=True)
    return x[:, :tokens]


def to_tokens(x: jax.Array) -> jax.Array:
    """The inverse of `to_heads`."""
    axes = shards.layout().tokens
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % shards.count(axes)), (0, 0), (0, 0)))
    return lax.all_to_all(x, axes, split_axis=1, concat_axis=2, tiled=True)


def summed(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A product over a part of a width, summed over the devices that hold the other parts."""

    def run(*args: Any, **kwargs: Any) -> jax.Array:
        return lax.psum(product(*args, **kwargs), "tensor")

    return run
