"""The toybox as a data source: worlds of the training split, rendered as they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.diffusion import keys
from mv2_jax.text import WordTokenizer
from mv2_jax.toybox import captions
from mv2_jax.toybox.world import sample_world
from mv2_jax.train.source import Arrays, Source
from mv2_jax.train.toybox import prompts, triplets, worlds


class Toybox(Source):
    """Rendered worlds with captions drawn anew every time. `data.motions` weighs motions.

    Raises:
        InputError: an unknown motion, or weights that leave nothing to draw.
    """

    traced = True
    settings: ClassVar = {"clips": ("motions",), "triplets": ("size", "side", "gap")}

    def __init__(self, data: Mapping[str, Any], seed: int) -> None:
        super().__init__(data, seed)
        self.motions = worlds.motions_of(data)
        # Jitted once here: a function made anew at every call would compile at every call.
        self._read = partial(jax.jit, static_argnums=(1, 2))(self.read)
        self._labels = jax.jit(self._label)

    def facts(self) -> Mapping[str, Any]:
        return {"seed": self.seed, **({"motions": self.motions} if self.motions else {})}

    def notes(self, numbers: Any) -> Arrays:
        return {"label": self._labels(np.asarray(numbers))}

    def _label(self, numbers: Any) -> jax.Array:
        drawn = worlds.numbered(self.seed, numbers, self.motions)
        return worlds.labels(drawn).astype(jnp.int8)

    def read(self, numbers: Any, frames: int, size: tuple[int, int]) -> tuple[jax.Array, Arrays]:
        drawn = worlds.numbered(self.seed, numbers, self.motions)
        label = worlds.labels(drawn).astype(jnp.int8)
        return worlds.clips(drawn, frames, size), {"label": label}

    def clips(self, numbers: Any, frames: int, size: tuple[int, int]) -> tuple[jax.Array, Arrays]:
        return self._read(np.asarray(numbers), frames, size)

    def captions(self, notes: Arrays, seed: int, step: int) -> list[str]:
        return prompts.draw(notes["label"], seed, step)

    def tokenizer(self, max_length: int) -> WordTokenizer:
        return WordTokenizer(captions.VOCABULARY, max_length=max_length)

    def pictures(self, seed: int, step: int, batch: int, size: int, crop: int = 0) -> jax.Array:
        return worlds.stills(worlds.step_key(seed, step), batch, size, crop)

    def triplets(self, numbers: np.ndarray) -> Arrays:
        data = self.data
        return triplets.draw(self.seed, numbers, data["size"], data["side"], tuple(data["gap"]))

    def examples(self, count: int) -> list[str]:
        return [captions.canonical(*words) for words in prompts.examples(count)]

    def example_clips(self, key: jax.Array, count: int, frames: int, size: tuple[int, int]) -> Any:
        tuples = jnp.asarray(prompts.examples(count))
        drawn = jax.vmap(sample_world)(keys.per_sample(key, count), *tuples.T)
        return worlds.clips(drawn, frames, size)
