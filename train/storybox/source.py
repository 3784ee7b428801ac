"""The storybox as a data source: worlds of the training split, rendered as they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.diffusion import keys
from mv2_jax.storybox import captions, renderer, split
from mv2_jax.storybox.world import World, words_of
from mv2_jax.text import WordTokenizer
from mv2_jax.train.source import Arrays, Source
from mv2_jax.train.toybox import triplets, worlds

PLAIN = 0.2  # share of captions that are the canonical ones
_EXAMPLES = 91  # what the worlds of sample sheets are drawn from


def draw(key: jax.Array, count: int) -> World:
    """`count` worlds [B] of the training split."""
    return jax.vmap(split.sample_train_world)(keys.per_sample(key, count))


@partial(jax.jit, static_argnums=0)
def numbered(seed: int, numbers: Any) -> World:
    """The worlds [B] with these numbers [B]: a fixed list of training worlds, made as needed."""
    key = keys.fold(keys.seed(seed % 2**32), "numbered world")
    return jax.vmap(split.sample_train_world)(keys.each(key, numbers))


class Storybox(Source):
    """Rendered worlds with captions drawn anew every time."""

    traced = True
    settings: ClassVar = {"clips": (), "triplets": ("size", "side", "gap")}

    def __init__(self, data: Mapping[str, Any], seed: int) -> None:
        super().__init__(data, seed)
        # Jitted once here: a function made anew at every call would compile at every call.
        self._read = partial(jax.jit, static_argnums=(1, 2))(self.read)

    def facts(self) -> Mapping[str, Any]:
        return {"world": "storybox", "seed": self.seed}

    def notes(self, numbers: Any) -> Arrays:
        return {"label": words_of(numbered(self.seed, numbers)).astype(jnp.int16)}

    def read(self, numbers: Any, frames: int, size: tuple[int, int]) -> tuple[jax.Array, Arrays]:
        drawn = numbered(self.seed, numbers)
        video = renderer.render_batch(drawn, renderer.frame_times(frames), size)
        return video, {"label": words_of(drawn).astype(jnp.int16)}

    def clips(self, numbers: Any, frames: int, size: tuple[int, int]) -> tuple[jax.Array, Arrays]:
        return self._read(np.asarray(numbers), frames, size)

    def captions(self, notes: Arrays, seed: int, step: int) -> list[str]:
        rng = np.random.default_rng([seed, step])
        labels = np.asarray(notes["label"])
        chances, plain = rng.integers(2**31, size=len(labels)), rng.random(len(labels)) < PLAIN
        return [
            captions.canonical(words) if easy else captions.caption(int(chance), words)
            for words, easy, chance in zip(labels, plain, chances)
        ]

    def tokenizer(self, max_length: int) -> WordTokenizer:
        return WordTokenizer(captions.VOCABULARY, max_length=max_length)

    def pictures(self, seed: int, step: int, batch: int, size: int, crop: int = 0) -> jax.Array:
        key = worlds.step_key(seed, step)
        return worlds.stills(key, batch, size, crop, draw, renderer.render)

    def triplets(self, numbers: np.ndarray) -> Arrays:
        data, drawn = self.data, numbered(self.seed, np.asarray(numbers))
        asked = (data["size"], data["side"], tuple(data["gap"]))
        return triplets.of(drawn, self.seed, numbers, *asked, renderer.render)

    def examples(self, count: int) -> list[str]:
        labels = np.asarray(self.notes(_EXAMPLES + np.arange(count))["label"])
        return [captions.canonical(words) for words in labels]

    def example_clips(self, key: jax.Array, count: int, frames: int, size: tuple[int, int]) -> Any:
        del key
        return self.clips(_EXAMPLES + np.arange(count), frames, size)[0]
