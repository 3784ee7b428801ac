"""Where the thing is in a picture of the toybox, read off its colours.

A pixel belongs to the thing where its colour is likelier under "a thing of the colour asked for"
than under "the scene asked for, at this height of the picture": two tables of counted colours, made
of true renders of random worlds when first needed. No network is asked, so that the measures which
build on this cannot inherit a network's blind spots; what the asked-for words do not explain is
not found.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.diffusion import keys as named
from mv2_jax.toybox.renderer import render_batch, render_mask
from mv2_jax.toybox.vocabulary import COLOURS, SCENES
from mv2_jax.toybox.world import sample_world

SIDE = 64  # the height at which pictures are looked at
_LEVELS, _BANDS = 16, 8  # of each channel; of a picture's height
_WORLDS, _AT_ONCE = 1024, 128
_SEED = 20402
# A colour that no render showed speaks for neither side; this share of either table is uniform.
_UNSEEN = 0.02
_PRIOR = -1.5  # log odds of the thing: it covers about a sixth of a picture
_LEAST, _MOST = 0.01, 0.5  # of the picture's area; less or more than this is no thing
_SECOND = 0.15  # of the largest piece's area; a piece of that size is another thing


class FoundThings(NamedTuple):
    """Of pictures [N]: the thing's pixels [N, h, w] (h is SIDE), whether it is there at all [N],
    and how many pieces of a like size there are [N]."""

    mask: np.ndarray
    there: np.ndarray
    pieces: np.ndarray


def find(pictures, colour, scene, chunk: int = 64) -> FoundThings:
    """The thing in pictures [N, H, W, 3] (uint8, or float in [-1, 1]).

    Args:
        colour, scene: [N] indices of the words that were asked for.
        chunk: how many pictures are looked at together.

    Raises:
        ValueError: `pictures` has another shape.
    """
    if np.ndim(pictures) != 4 or np.shape(pictures)[-1] != 3:
        raise ValueError(f"pictures are [N, H, W, 3], not {list(np.shape(pictures))}")
    parts = []
    for start in range(0, len(pictures), chunk):
        part = jnp.asarray(pictures[start : start + chunk])
        # Always the same shape, so that the last part compiles nothing new.
        missing = (chunk if len(pictures) > chunk else len(part)) - len(part)
        padded = jnp.pad(part, [(0, missing)] + [(0, 0)] * 3)
        asked = [np.asarray(words)[start : start + chunk] for words in (colour, scene)]
        asked = [np.pad(words, (0, missing)) for words in asked]
        labels = np.asarray(_pieces(padded, *asked, *palette()))
        parts.append(_largest(labels[: len(part)]))
    return FoundThings(*(np.concatenate(column) for column in zip(*parts)))


def small(pictures) -> jax.Array:
    """Pictures [N, H, W, 3] as float32 in [-1, 1], SIDE high, antialiased."""
    pictures = jnp.asarray(pictures)
    if pictures.dtype == jnp.uint8:
        pictures = pictures.astype(jnp.float32) / 127.5 - 1.0
    n, height, width, _ = pictures.shape
    shape = (n, SIDE, max(1, round(SIDE * width / height)), 3)
    return jax.image.resize(pictures.astype(jnp.float32), shape, "linear", antialias=True)


@cache
def palette() -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of colours: of things [colours, bins], of scenes [scenes, bands, bins]."""
    bins = _LEVELS**3
    of_things = np.zeros((len(COLOURS), bins))
    of_scenes = np.zeros((len(SCENES), _BANDS, bins))

    @jax.jit
    def draw(part):
        keys = named.split(named.fold(named.seed(_SEED), part), _AT_ONCE)
        worlds = jax.vmap(sample_world)(keys)
        time = jax.random.uniform(named.fold(keys[0], 1), (1,))
        size = (SIDE, SIDE)
        cover = jax.vmap(lambda world: render_mask(world, time, size)[0])(worlds)
        return render_batch(worlds, time, size)[:, 0], cover, worlds.colour, worlds.scene

    band = np.broadcast_to((np.arange(SIDE) * _BANDS // SIDE)[:, None], (SIDE, SIDE))
    for part in range(_WORLDS // _AT_ONCE):
        frames, cover, colour, scene = jax.device_get(draw(part))
        where = np.asarray(_bins(frames))
        for i in range(_AT_ONCE):
            inside, outside = cover[i] > 0.9, cover[i] < 0.1
            of_things[colour[i]] += np.bincount(where[i][inside], minlength=bins)
            numbers = band[outside] * bins + where[i][outside]
            of_scenes[scene[i]] += np.bincount(numbers, minlength=_BANDS * bins).reshape(-1, bins)
    return _logs(of_things), _logs(of_scenes)


def _bins(frames):
    """Frames [..., 3] in [-1, 1] -> the number of each pixel's colour [...] int32."""
    level = jnp.clip((frames + 1.0) * (0.5 * _LEVELS), 0, _LEVELS - 1).astype(jnp.int32)
    return (level[..., 0] * _LEVELS + level[..., 1]) * _LEVELS + level[..., 2]


def _logs(counts: np.ndarray) -> np.ndarray:
    """Counts [..., bins] as log-probabilities, spread over neighbouring colours."""
    cube = counts.reshape(-1, _LEVELS, _LEVELS, _LEVELS)
    for axis in (1, 2, 3):  # 1 2 1, twice: networks blur colours by about that much
        for _ in range(2):
            edge = np.pad(cube, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge")
            before, after = (np.take(edge, range(s, s + _LEVELS), axis) for s in (0, 2))
            cube = 0.25 * before + 0.5 * cube + 0.25 * after
    share = cube.reshape(counts.shape)
    share = share / share.sum(axis=-1, keepdims=True)
    return np.log((1 - _UNSEEN) * share + _UNSEEN / share.shape[-1]).astype(np.float32)


@jax.jit
def _pieces(pictures, colour, scene, of_things, of_scenes):
    """The numbers [N, h, w] int32 of the connected pieces that look like the thing, 0 elsewhere."""
    frames = small(pictures)
    where = _bins(frames)
    height, width = frames.shape[1:3]
    band = (jnp.arange(height) * _BANDS // height)[None, :, None]
    odds = of_things[colour[:, None, None], where]
    odds = odds - of_scenes[scene[:, None, None], band, where] + _PRIOR

    def around(x, start, join):
        return jax.lax.reduce_window(x, start, join, (1, 3, 3), (1, 1, 1), "SAME")

    mask = around(odds, 0.0, jax.lax.add) > 0
    number = 1 + jnp.arange(height * width, dtype=jnp.int32).reshape(1, height, width)
    first = jnp.where(mask, number, 0)

    def spread(pair):
        labels, _ = pair
        wider = jnp.where(mask, around(labels, 0, jax.lax.max), 0)
        return wider, jnp.any(wider != labels)

    return jax.lax.while_loop(lambda pair: pair[1], spread, (first, jnp.asarray(True)))[0]


def _largest(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest piece of each picture, whether its size is a thing's, how many are like it."""
    mask, there, pieces = np.zeros(labels.shape, bool), [], []
    for i, picture in enumerate(labels):
        sizes = np.bincount(picture.ravel())
        sizes[0] = 0
        most = sizes.max()
        there.append(_LEAST * picture.size <= most <= _MOST * picture.size)
        pieces.append(int((sizes >= max(_SECOND * most, _LEAST * picture.size)).sum()))
        if there[-1]:
            mask[i] = picture == sizes.argmax()
    return mask, np.array(there), np.array(pieces)
