"""What frame interpolation learns from: two frames, one between them, and the light model's guess.

A sample is uint8 "first", "second", "target", "guess" [side, side, 3] and fp32 "time" in (0, 1).
They are made once and kept in shards: the light model costs more than a training step would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.infer.media import to_float, to_uint8

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
