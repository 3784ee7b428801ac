"""The drawings that worlds are made of, and how one is looked up at a place, size and turn.

The atlas ships as one lossless picture (`atlas/`, made by `benchmarks/storybox_atlas.py`). It is
kept as a pyramid of halved sizes with colours weighed by cover, so that a drawing is sampled
between its texels and between its sizes: no jagged edges and no dark rims, whatever the scale.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.storybox.vocabulary import PROPS, STYLES, THINGS

FOLDER = Path(__file__).parent / "atlas"
LEVELS = 5  # of the pyramid: 128, 64, 32, 16 and 8 texels
COUNT = len(THINGS) + len(PROPS)  # drawings of a style


class Atlas(NamedTuple):
    """texels: [drawings, all levels' texels, 4] uint8, red, green, blue (times cover) and cover;
    foot, top: [drawings] the lowest and highest place drawn on, -1 to 1."""

    texels: np.ndarray
    foot: np.ndarray
    top: np.ndarray


def facts() -> dict[str, Any]:
    """What atlas.json says: names, icons, side, and the styles' packages and licences."""
    return json.loads((FOLDER / "atlas.json").read_text())


@cache
def load() -> Atlas:
    """The atlas that ships; style s of drawing d is row s * COUNT + d."""
    from PIL import Image

    said = facts()
    side, columns, count = said["side"], said["columns"], COUNT * len(STYLES)
    whole = np.asarray(Image.open(FOLDER / "atlas.webp").convert("RGBA"), np.float32)
    rows = whole.shape[0] // side
    tiles = whole.reshape(rows, side, columns, side, 4).swapaxes(1, 2).reshape(-1, side, side, 4)
    level = tiles[:count].copy()
    level[..., :3] *= level[..., 3:] / 255
    cover = level[..., 3].max(axis=2) > 64
    first = cover.argmax(axis=1)
    last = side - cover[:, ::-1].argmax(axis=1)
    pyramid = []
    for _ in range(LEVELS):
        pyramid.append(np.round(level).astype(np.uint8).reshape(count, -1, 4))
        half = level.shape[1] // 2
        level = level.reshape(count, half, 2, half, 2, 4).mean(axis=(2, 4))
    return Atlas(
        np.concatenate(pyramid, axis=1),
        (1 - 2 * last / side).astype(np.float32),
        (1 - 2 * first / side).astype(np.float32),
    )


@cache
def texels() -> jax.Array:
    """The atlas's texels on the device; programs take them as an argument, not as a constant of
    20 MB that each would hold."""
    with jax.ensure_compile_time_eval():
        return jnp.asarray(load().texels)


_SIDES = np.array([128 >> level for level in range(LEVELS)], np.int32)
_STARTS = np.concatenate([[0], np.cumsum(_SIDES**2)[:-1]]).astype(np.int32)


def sample(drawing, u, v, span):
    """A drawing where it is looked at.

    Args:
        drawing: [texels, 4] uint8, one row of the atlas.
        u, v: [H, W] places in it, -1 to 1 from left to right and from the bottom up; beyond there
            is nothing.
        span: scalar, how much of u one pixel of the picture spans.

    Returns:
        [H, W, 4] float32 in [0, 1]: colours times cover, and cover.
    """
    shape = jnp.broadcast_shapes(u.shape, v.shape)
    sharp = jnp.clip(jnp.log2(span * (_SIDES[0] / 2) + 1e-9), 0.0, LEVELS - 1.0)
    lower = jnp.minimum(sharp.astype(jnp.int32), LEVELS - 2)
    share = sharp - lower
    u, v = jnp.broadcast_to(u, shape), jnp.broadcast_to(v, shape)
    # Tap by tap, not stacked: XLA on CPUs then makes one loop of all that keeps nothing.
    fine, coarse = (_bilinear(drawing, u, v, level) for level in (lower, lower + 1))
    return (fine + share * (coarse - fine)) / 255.0


def _bilinear(drawing, u, v, level):
    """One level of a drawing, [H, W, 4] in [0, 255]."""
    side, start = jnp.asarray(_SIDES)[level], jnp.asarray(_STARTS)[level]
    x, y = ((u + 1) * side - 1) / 2, ((1 - v) * side - 1) / 2
    left, above = jnp.floor(x), jnp.floor(y)
    total = jnp.zeros((*u.shape, 4))
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = left + dx, above + dy
            weight = (1 - jnp.abs(x - column)) * (1 - jnp.abs(y - row))
            inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
            index = jnp.where(inside, row * side + column, 0).astype(jnp.int32) + start
            taken = drawing[index].astype(jnp.float32)
            total = total + jnp.where(inside, weight, 0.0)[..., None] * taken
    return total
