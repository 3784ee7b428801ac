"""Draws the contact sheet of docs/storybox.md: withheld worlds, four frames each.

python benchmarks/storybox_sheet.py docs/storybox.jpg
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mv2_jax.storybox import captions, renderer, split
from mv2_jax.storybox.world import sample_world

SIDE, FRAMES, WORLDS = 144, 4, 16


def main(path: str) -> None:
    words = np.concatenate([split.test_words(which, WORLDS // 2) for which in split.SETS])
    each = jax.random.split(jax.random.key(0), WORLDS)
    worlds = jax.jit(jax.vmap(sample_world))(each, jnp.asarray(words))
    video = renderer.render_batch(worlds, renderer.frame_times(FRAMES), (SIDE, SIDE))
    frames = np.asarray(jnp.round((video + 1) * 127.5)).astype(np.uint8)
    rows = frames.reshape(WORLDS // 2, 2 * FRAMES, SIDE, SIDE, 3)
    sheet = rows.swapaxes(1, 2).reshape(WORLDS // 2 * SIDE, 2 * FRAMES * SIDE, 3)
    Image.fromarray(sheet).save(path, quality=82)
    for row in words:
        print(captions.canonical(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
