"""Filling the gaps of a clip with an interpolator that sees two frames at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mv2_jax.stages.vfi_table import Config

Between = Callable[[Array, Array, Array], Array]


def unit(frames: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """[-1, 1] -> fp32 [0, 1]."""
    return frames.astype(jnp.float32) * 0.5 + 0.5


def keep_stills(
    first: Float[Array, "P H W 3"], second: Float[Array, "P H W 3"], new: Float[Array, "P K H W 3"]
) -> Float[Array, "P K H W 3"]:
    """New frames [P, K, H, W, 3] from [0, 1] to [-1, 1]; where the pair is identical, copies."""
    still = jnp.all(first == second, axis=(1, 2, 3))[:, None, None, None, None]
    new = (new * 2 - 1).astype(first.dtype)
    return jnp.where(still, jnp.broadcast_to(first[:, None], new.shape), new)


@functools.partial(jax.jit, static_argnames=("between", "cfg", "times", "dtype"))
def filled(
    between: Callable[..., Array],
    params: Any,
    cfg: Config,
    frames: Array,
    times: int,
    *,
    dtype: Any,
) -> Array:
    """`fill` by an interpolator's own `between`, which takes parameters and config as well."""

    def one(first: Array, second: Array, clock: Array) -> Array:
        return between(params, cfg, first, second, clock, dtype=dtype)

    return fill(one, frames, times)


def any_or_doubled(
    fill: Callable[[Array, int], Array], frames: Array, times: int, any_time: bool
) -> Array:
    """`fill(frames, times)`; where a network knows the middle alone, doubled again and again.

    Raises:
        ValueError: as `checked`, or `times` is no power of two and the network needs one.
    """
    if any_time:
        return fill(frames, times)
    frames = checked(frames, times)
    if not doubles(times):
        raise ValueError(
            "these weights know the middle between two frames alone, so times must be a power of "
            f"two, not {times}"
        )
    while times > 1:
        frames, times = fill(frames, 2), times // 2
    return frames


def doubles(times: int) -> bool:
    """Whether `times` is a power of two."""
    return not int(times) & (int(times) - 1)


def fill(
    between: Between, frames: Float[Array, "B T H W 3"], times: int
) -> Float[Array, "B new H W 3"]:
    """`times` frames for every one, the gaps worked through one after the other.

    Args:
        between: two frames [1, H, W, 3] and times [1, K] -> [1, K, H, W, 3], all in [-1, 1].
        frames: [B, T, H, W, 3], T of at least 2.
        times: at least 2.

    Returns:
        [B, (T - 1) * times + 1, H, W, 3]; the given frames as they went in.
    """
    batch, count, *shape = frames.shape
    clock = jnp.arange(1, times, dtype=jnp.float32)[None] / times
    pairs = (x.reshape(-1, 1, *shape) for x in (frames[:, :-1], frames[:, 1:]))
    new = lax.map(lambda pair: between(pair[0], pair[1], clock)[0], tuple(pairs))
    new = new.astype(frames.dtype).reshape(batch, count - 1, times - 1, *shape)
    filled = jnp.concatenate((frames[:, :-1, None], new), axis=2)
    return jnp.concatenate((filled.reshape(batch, -1, *shape), frames[:, -1:]), axis=1)


def checked(frames: Array, times: float) -> Array:
    """`frames` as an array.

    Raises:
        ValueError: not [B, T, H, W, 3] in floating point, or `times` no whole number from 1 up.
    """
    frames = jnp.asarray(frames)
    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.shape[1] < 1:
        raise ValueError(f"interpolate needs frames [B, T, H, W, 3]; got {frames.shape}")
    if not jnp.issubdtype(frames.dtype, jnp.floating):
        raise ValueError(f"interpolate needs frames in [-1, 1], floating point; got {frames.dtype}")
    if int(times) != times or times < 1:
        raise ValueError(f"times must be a whole number of at least 1; got {times}")
    return frames


def each_time(
    make: Callable[[Array], Array], times: Float[Array, "P K"]
) -> Float[Array, "P K *shape"]:
    """Calls `make` for one time [P] after another of [P, K]: [P, ...] -> [P, K, ...].

    Working memory does not grow with K so.
    """
    return jnp.moveaxis(lax.map(make, times.T), 0, 1)
