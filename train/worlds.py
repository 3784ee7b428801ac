"""Toybox worlds as training data: drawn from the training split only, rendered as they are needed.

A batch depends on (seed, step) alone, so that a resumed phase goes on with the data that the
uninterrupted one would have seen.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from mv2_jax.diffusion import keys
from mv2_jax.toybox import renderer, split
from mv2_jax.toybox.world import World


def step_key(seed: int, step: int) -> jax.Array:
    """The key of a step's batch."""
    return keys.fold(keys.fold(keys.seed(seed % 2**32), "training batch"), step)


def draw(key: jax.Array, count: int) -> World:
    """`count` worlds [B] of the training split."""
    return jax.vmap(split.sample_train_world)(keys.per_sample(key, count))


@partial(jax.jit, static_argnums=(1, 2, 3))
def stills(key: jax.Array, count: int, size: int, crop: int = 0) -> jax.Array:
    """Frames [B, H, W, 3] in [-1, 1] at random times of random worlds, `size` pixels square.

    `crop` > 0 cuts a square of that side from a random place of each; H = W = `crop` then.
    """
    worlds = draw(keys.fold(key, "world"), count)
    times = keys.uniform(keys.per_sample(keys.fold(key, "time"), count))
    frames = jax.vmap(lambda w, t: renderer.render(w, t[None], (size, size))[0])(worlds, times)
    if not crop:
        return frames
    corners = jax.vmap(lambda k: jax.random.randint(k, (2,), 0, size - crop + 1))(
        keys.per_sample(keys.fold(key, "crop"), count)
    )
    cut = lambda frame, at: jax.lax.dynamic_slice(frame, (at[0], at[1], 0), (crop, crop, 3))  # noqa: E731
    return jax.vmap(cut)(frames, corners)


@partial(jax.jit, static_argnums=(1, 2))
def clips(worlds: World, frames: int, size: tuple[int, int]) -> jax.Array:
    """Clips [B, T, H, W, 3] in [-1, 1] of given worlds [B], times spread evenly over the clip."""
    return renderer.render_batch(worlds, renderer.frame_times(frames), size)


def first_frames(worlds: World, size: tuple[int, int]) -> jax.Array:
    """The first frames [B, H, W, 3] in [-1, 1] of given worlds [B]."""
    return clips(worlds, 1, size)[:, 0]


def labels(worlds: World) -> jax.Array:
    """[B, 4] int32: thing, colour, scene, motion, as indices into the toybox's words."""
    return jnp.stack([worlds.thing, worlds.colour, worlds.scene, worlds.motion], axis=-1)
