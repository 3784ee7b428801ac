"""Two frames of a toybox world and one between them, see `train.triplets`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.diffusion import keys
from mv2_jax.toybox import renderer
from mv2_jax.train.toybox import worlds
from mv2_jax.train.triplets import CUTS, IMAGES, Arrays


def draw(seed: int, numbers: np.ndarray, size: int, side: int, gap: tuple[float, float]) -> Arrays:
    """Samples of numbered training worlds, without guesses.

    Frames are `size` pixels square and `gap` (least, most) of a clip's length apart; the target is
    anywhere between them. The crop of `side` is, of a few random ones, that in which most moves.
    """
    drawn = worlds.numbered(seed, jnp.asarray(numbers))
    return of(drawn, seed, numbers, size, side, gap)


def of(
    drawn: Any,
    seed: int,
    numbers: np.ndarray,
    size: int,
    side: int,
    gap: tuple[float, float],
    render: Callable[..., jax.Array] = renderer.render,
) -> Arrays:
    """`draw` of given worlds [B], which `render` (world, times, size) draws."""
    each = keys.fold(keys.seed(seed % 2**32), "triplet")
    each = keys.each(each, numbers)
    images, time = _draw(drawn, each, size, side, tuple(gap), render)
    images = np.asarray(images)
    named = {name: images[:, i] for i, name in enumerate(IMAGES[:3])}
    return {**named, "time": np.asarray(time)}


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _draw(
    drawn: Any,
    each: jax.Array,
    size: int,
    side: int,
    gap: tuple[float, float],
    render: Callable[..., jax.Array],
):
    def sample(pair: tuple[Any, jax.Array]) -> tuple[jax.Array, jax.Array]:
        world, key = pair
        apart, start, share, place = keys.split(key, 4)
        length = jax.random.uniform(apart, (), minval=gap[0], maxval=gap[1])
        begin = jax.random.uniform(start) * (1 - length)
        time = jax.random.uniform(share, minval=0.1, maxval=0.9)
        moments = begin + length * jnp.stack((jnp.zeros(()), jnp.ones(()), time))
        frames = render(world, moments, (size, size))
        corners = jax.random.randint(place, (CUTS, 2), 0, size - side + 1)

        def cut(corner: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(frames, (0, *corner, 0), (3, side, side, 3))

        cuts = jax.vmap(cut)(corners)
        moved = jnp.abs(cuts[:, 0] - cuts[:, 1]).mean(axis=(1, 2, 3))
        chosen = jnp.clip((cuts[jnp.argmax(moved)] + 1) * 127.5, 0, 255)
        return jnp.round(chosen).astype(jnp.uint8), time

    return jax.lax.map(sample, (drawn, each))
