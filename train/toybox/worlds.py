"""Toybox worlds as training data: drawn from the training split only, rendered as they are needed.

A batch depends on (seed, step) alone, so that a resumed phase goes on with the data that the
uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mv2_jax.diffusion import keys
from mv2_jax.errors import InputError
from mv2_jax.toybox import renderer, split
from mv2_jax.toybox.world import World
from mv2_jax.train.latents import at_once


def step_key(seed: int, step: int) -> jax.Array:
    """The key of a step's batch."""
    return keys.fold(keys.fold(keys.seed(seed % 2**32), "training batch"), step)


def draw(key: jax.Array, count: int) -> World:
    """`count` worlds [B] of the training split."""
    return jax.vmap(split.sample_train_world)(keys.per_sample(key, count))


def numbered(seed: int, numbers: jax.Array, motions: Mapping[str, float] | None = None) -> World:
    """The worlds [B] with these numbers [B]: a fixed list of training worlds, made as needed.

    `motions` weighs them as `split.sample_train_world` says; other weights make another list.
    """
    key = keys.fold(keys.seed(seed % 2**32), "numbered world")
    each = keys.each(key, numbers)
    return jax.vmap(partial(split.sample_train_world, motions=motions))(each)


def motions_of(data: Any) -> dict[str, float]:
    """A recipe's `data.motions`, how much oftener than the others some are drawn; {} by default.

    Raises:
        InputError: an unknown motion, or weights that leave nothing to draw.
    """
    motions = dict(data.get("motions", {}))
    try:
        split.shares(motions)
    except ValueError as error:
        raise InputError(f"data.motions: {error}") from None
    return motions


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def stills(
    key: jax.Array,
    count: int,
    size: int,
    crop: int = 0,
    draw: Callable[[jax.Array, int], Any] = draw,
    render: Callable[..., jax.Array] = renderer.render,
) -> jax.Array:
    """Frames [B, H, W, 3] in [-1, 1] at random times of random worlds, `size` pixels square.

    With `crop` > 0, squares of that side from random places instead, as many as make up the
    pixels of `count` whole frames: B = count * (size // crop)^2, H = W = crop.

    Another world brings its own `draw` (key, count) and `render` (world, times, size).
    """
    worlds = draw(keys.fold(key, "world"), count)
    times = keys.uniform(keys.per_sample(keys.fold(key, "time"), count))

    def frame(world: Any, time: jax.Array) -> jax.Array:
        return render(world, time[None], (size, size))[0]

    # Few at a time: the planes of a frame then stay in a CPU's cache (twice as fast there).
    few = at_once(min(4, count), count)
    frames = jax.lax.map(lambda pair: frame(*pair), (worlds, times), batch_size=few)
    if not crop:
        return frames
    pieces = (size // crop) ** 2

    def cut(frame: jax.Array, key: jax.Array) -> jax.Array:
        corners = jax.random.randint(key, (pieces, 2), 0, size - crop + 1)
        slice_at = partial(jax.lax.dynamic_slice, slice_sizes=(crop, crop, 3))
        return jax.vmap(lambda at: slice_at(frame, (at[0], at[1], 0)))(corners)

    cuts = jax.vmap(cut)(frames, keys.per_sample(keys.fold(key, "crop"), count))
    return cuts.reshape(count * pieces, crop, crop, 3)


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
