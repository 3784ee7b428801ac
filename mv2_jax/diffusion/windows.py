"""Clips longer than the network's motion window: overlapping windows, blended at every step.

A motion module knows a fixed number of frames. A longer clip is denoised in overlapping windows of
that many; where windows overlap, their outputs are averaged with weights that sum to one, so that
what the sampler sees is one output for the whole clip (MultiDiffusion, arXiv 2302.08113, over time,
as AnimateDiff's users do). Networks know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mv2_jax.lookup import one_of

KINDS = ("pyramid", "uniform")


def starts(frames: int, window: int, overlap: int) -> np.ndarray:
    """The first frame of every window, int32 [W], rising.

    Each window begins `window - overlap` frames after the one before; the last ends with the clip
    and so may overlap more. All are full, since a motion module sees a shorter one differently.

    Raises:
        ValueError: the window is not positive, or overlaps are not in 0..window - 1.
    """
    if window < 1 or not 0 <= overlap < window:
        raise ValueError(f"windows of {window} frames cannot overlap by {overlap}")
    last = max(frames - window, 0)
    return np.asarray([*range(0, last, window - overlap), last], np.int32)


def weights(frames: int, window: int, overlap: int, kind: str = "pyramid") -> np.ndarray:
    """What each window's frames weigh, float32 [W, window]; over a clip's frame they sum to one.

    "pyramid" falls towards a window's ends, where it sees least of a frame's neighbours;
    "uniform" is the plain average.

    Raises:
        ValueError: an unknown kind, or as `starts`.
    """
    one_of(kind, KINDS, "weights")
    at = starts(frames, window, overlap)[:, None] + np.arange(min(window, frames))[None]
    length = at.shape[1]
    own = np.ones(length)
    if kind == "pyramid":
        own = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1)).astype(np.float64)
    total = np.zeros(frames)
    np.add.at(total, at, np.broadcast_to(own, at.shape))
    return (own[None] / total[at]).astype(np.float32)


def over(
    model: Callable[[jax.Array, jax.Array, Any], jax.Array],
    frames: int,
    window: int,
    overlap: int,
    kind: str = "pyramid",
    axis: int = 1,
    some: Callable[[Any, jax.Array], Any] | None = None,
) -> Callable[[jax.Array, jax.Array, Any], jax.Array]:
    """`model(x, t, condition) -> output` of clips of `frames` from one that knows `window`.

    x and the output have their frames at `axis`; t has none. What the condition has of them is cut
    by `some(condition, frames) -> condition`, frames being the numbers [window] of a window's. A
    clip that fits the window is left to `model` itself. Windows are run one after another: memory
    is one window's.

    Raises:
        ValueError: as `weights`.
    """
    at = starts(frames, window, overlap)
    share = weights(frames, window, overlap, kind)
    if frames <= window:
        return model

    def whole(x: jax.Array, t: jax.Array, condition: Any) -> jax.Array:
        def one(total: jax.Array, this: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            begin, weight = this
            weight = weight.reshape(*[1] * axis, window, *[1] * (x.ndim - axis - 1))
            told = some(condition, begin + jnp.arange(window)) if some else condition
            output = model(lax.dynamic_slice_in_dim(x, begin, window, axis), t, told)
            sofar = lax.dynamic_slice_in_dim(total, begin, window, axis)
            added = sofar + weight * output.astype(jnp.float32)
            return lax.dynamic_update_slice_in_dim(total, added, begin, axis), None

        none = jnp.zeros(x.shape, jnp.float32)
        return lax.scan(one, none, (jnp.asarray(at), jnp.asarray(share)))[0]

    return whole
