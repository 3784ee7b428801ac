"""What frame interpolation learns from: two frames, one between them, and the light model's guess.

A sample is uint8 "first", "second", "target", "guess" [side, side, 3] and fp32 "time" in (0, 1).
They are made once and kept in shards: the light model costs more than a training step would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.diffusion import keys
from mv2_jax.infer.media import to_float, to_uint8
from mv2_jax.toybox import renderer
from mv2_jax.toybox.world import World
from mv2_jax.train import worlds

Arrays = dict[str, np.ndarray]
Light = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

IMAGES = ("first", "second", "target", "guess")
CUTS = 4  # places tried for a crop; the one where most moves is taken


def with_guess(light: Light, drawn: Mapping[str, np.ndarray], at_once: int = 8) -> Arrays:
    """Adds the light model's frame to samples that lack it.

    `light`: two frames [P, side, side, 3] in [-1, 1], times [P, 1] -> [P, 1, side, side, 3].
    """
    count = len(drawn["time"])
    parts = []
    for start in range(0, count, at_once):
        # Always the same shape, so that the last part compiles nothing new.
        rows = np.minimum(np.arange(start, start + at_once), count - 1)
        first, second = (to_float(drawn[name][rows]) for name in ("first", "second"))
        guess = light(first, second, jnp.asarray(drawn["time"][rows, None]))
        parts.append(to_uint8(np.asarray(guess)[:, 0]))
    return {**drawn, "guess": np.concatenate(parts)[:count]}


def hardest(samples: Mapping[str, np.ndarray], among: int) -> Arrays:
    """Of every `among` samples that follow each other, the one whose guess is farthest off.

    Where the light model is right, a network that corrects it can only learn to be silent.
    """
    off = samples["guess"].astype(np.float32) - samples["target"]
    worst = np.abs(off).mean(axis=(1, 2, 3)).reshape(-1, among).argmax(axis=1)
    rows = np.arange(len(worst)) * among + worst
    return {name: x[rows] for name, x in samples.items()}


def toybox(
    seed: int, numbers: np.ndarray, size: int, side: int, gap: tuple[float, float]
) -> Arrays:
    """Samples of numbered training worlds, without guesses.

    Frames are `size` pixels square and `gap` (least, most) of a clip's length apart; the target is
    anywhere between them. The crop of `side` is, of a few random ones, that in which most moves.
    """
    drawn = worlds.numbered(seed, jnp.asarray(numbers))
    each = keys.fold(keys.seed(seed % 2**32), "triplet")
    each = keys.each(each, numbers)
    images, time = _toybox(drawn, each, size, side, tuple(gap))
    images = np.asarray(images)
    named = {name: images[:, i] for i, name in enumerate(IMAGES[:3])}
    return {**named, "time": np.asarray(time)}


@partial(jax.jit, static_argnums=(2, 3, 4))
def _toybox(drawn: World, each: jax.Array, size: int, side: int, gap: tuple[float, float]):
    def sample(pair: tuple[World, jax.Array]) -> tuple[jax.Array, jax.Array]:
        world, key = pair
        apart, start, share, place = keys.split(key, 4)
        length = jax.random.uniform(apart, (), minval=gap[0], maxval=gap[1])
        begin = jax.random.uniform(start) * (1 - length)
        time = jax.random.uniform(share, minval=0.1, maxval=0.9)
        moments = begin + length * jnp.stack((jnp.zeros(()), jnp.ones(()), time))
        frames = renderer.render(world, moments, (size, size))
        corners = jax.random.randint(place, (CUTS, 2), 0, size - side + 1)

        def cut(corner: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(frames, (0, *corner, 0), (3, side, side, 3))

        cuts = jax.vmap(cut)(corners)
        moved = jnp.abs(cuts[:, 0] - cuts[:, 1]).mean(axis=(1, 2, 3))
        chosen = jnp.clip((cuts[jnp.argmax(moved)] + 1) * 127.5, 0, 255)
        return jnp.round(chosen).astype(jnp.uint8), time

    return jax.lax.map(sample, (drawn, each))


def turned(batch: Mapping[str, np.ndarray], seed: int, step: int) -> Arrays:
    """The batch mirrored and transposed at random, sample by sample; depends on (seed, step)."""
    random = np.random.default_rng([seed, step, 2])
    choices = random.integers(2, size=(len(batch["time"]), 3))

    def turn(image: np.ndarray, choice: np.ndarray) -> np.ndarray:
        image = image[::-1] if choice[0] else image
        image = image[:, ::-1] if choice[1] else image
        return image.transpose(1, 0, 2) if choice[2] else image

    images = {
        name: np.stack([turn(x, choice) for x, choice in zip(batch[name], choices)])
        for name in IMAGES
    }
    return {**images, "time": batch["time"]}
