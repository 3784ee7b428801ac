"""What a picture of the storybox shows, measured against the true render nearest to it.

The fit of the asked-for words (`fit`) says where each thing is, how large, how far turned and which
is in front. Of each thing, where it is not hidden: how much of its look the fit explains, and
whether another drawing of the atlas, laid at the same place, explains it better. A word is right
where every number that speaks of it is within its bound (`BOUNDS`);
`benchmarks/storybox_judging.py` puts them to the test. Single pictures are judged, not motion.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.storybox import atlas, fit, renderer, scenes
from mv2_jax.storybox.vocabulary import NOTHING, STYLES
from mv2_jax.storybox.world import ABOVE, BEHIND, LEFT_OF, RIGHT_OF
from mv2_jax.toybox.masks import small

KINDS = ("thing", "second", "relation", "scene")


class Bound(NamedTuple):
    """Where a number is right: from `low` to `high`; which verdict it belongs to, and its words."""

    kind: str
    low: float
    high: float
    says: str


BOUNDS = {
    "explained": Bound("thing", 0.7, 1.0, "share of the thing's look that its drawing explains"),
    "other": Bound("thing", -1.0, 0.0, "by how much another drawing explains it better"),
    "second": Bound("second", 0.6, 1.0, "share of the second thing's look that is explained"),
    "second_other": Bound("second", -1.0, 0.0, "by how much another drawing explains that better"),
    "apart": Bound("relation", 0.0, 4.0, "how far the second is on its side, beyond the least"),
    "order": Bound("relation", -0.0003, 1.0, "by how much the first in front explains more"),
    "misfit": Bound("scene", 0.0, 0.2, "share of the scene that the fit leaves out"),
}


class Sight(NamedTuple):
    """Of pictures [N]: {kind: right [N]} and "all"; the numbers [N] of `BOUNDS` (NaN: of a second
    thing that is not asked for); the fits."""

    right: dict[str, np.ndarray]
    numbers: dict[str, np.ndarray]
    found: fit.Fit


def look(pictures, words) -> Sight:
    """Pictures [N, H, W, 3] (uint8, or float in [-1, 1]) beside what was asked for [N, WORDS]."""
    words = np.asarray(words, np.int32)
    found, _ = fit.fit(pictures, words)
    texels, rows = atlas.texels(), []
    for i in range(len(words)):
        picture = small(np.asarray(pictures[i : i + 1]))[0] * 0.5 + 0.5
        one = jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), found)
        rows.append(jax.device_get(_measured(picture, jnp.asarray(words[i]), one, texels)))
    numbers = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    numbers |= _related(found, words)
    alone = words[:, 6] == NOTHING
    for name in ("second", "second_other"):
        numbers[name] = np.where(alone, np.nan, numbers[name])
    right = {kind: np.ones(len(words), bool) for kind in KINDS}
    for name, values in numbers.items():
        bound = BOUNDS[name]
        right[bound.kind] &= ((values >= bound.low) & (values <= bound.high)) | np.isnan(values)
    right["all"] = np.logical_and.reduce([right[kind] for kind in KINDS])
    return Sight(right, numbers, found)


def _related(found: fit.Fit, words) -> dict[str, np.ndarray]:
    """Numbers of where the second thing is."""
    relation, alone = words[:, 7], words[:, 6] == NOTHING
    right = found.x[:, 1] - found.x[:, 0]
    up = found.y[:, 1] - found.y[:, 0]
    apart = np.select(
        [relation == LEFT_OF, relation == RIGHT_OF, relation == ABOVE, relation == BEHIND],
        [-right - 0.5, right - 0.5, up - 0.3, 0.8 - np.abs(right)],
    )
    order = np.where(found.front == 0, found.sure, -found.sure)
    order = np.where(relation == BEHIND, order, np.nan)
    return {
        "apart": np.where(alone, np.nan, apart),
        "order": np.where(alone, np.nan, order),
    }


@jax.jit
def _measured(picture, words, found, texels):
    """Numbers of one picture [h, w, 3] in [0, 1]."""
    size = picture.shape[:2]
    layers = fit.draw(found, words, size, texels)
    covers = layers.things[..., 3]
    front = found.front
    hidden = covers[front] * (jnp.arange(2) != front)[:, None, None]
    shown = covers * (1 - hidden)  # of each thing, what is not hidden
    lost = jnp.square(picture - layers.picture).sum(axis=-1)
    explained = [
        1 - jnp.sum(shown[i] * lost) / (jnp.sum(shown[i] * _contrast(layers, i)) + 1e-6)
        for i in range(2)
    ]
    others = jax.lax.map(lambda i: _other(picture, words, found, layers, i, texels), jnp.arange(2))
    free = (jnp.sum(covers, axis=0) < 0.02).astype(jnp.float32)
    share = jnp.square((picture - layers.picture) / 0.12).sum(axis=-1)
    misfit = jnp.sum(free * share / (1 + share)) / (jnp.sum(free) + 1e-6)
    names = ("explained", "second", "other", "second_other", "misfit")
    return dict(zip(names, (*explained, *others, misfit), strict=True))


def _contrast(layers: fit.Layers, i):
    """How far a thing's drawing is from what is behind it, [h, w]."""
    drawing = layers.things[i]
    colour = drawing[..., :3] / jnp.maximum(drawing[..., 3:], 1e-3)
    return jnp.square(colour - layers.behind).sum(axis=-1)


def _other(picture, words, found, layers: fit.Layers, i, texels):
    """The error with the asked drawing less the least with any other at the same place, as a share
    of what there is to explain."""
    size = picture.shape[:2]
    scene = jnp.stack([found.horizon, found.hue, found.camera, found.time, found.to_x, found.to_y])
    world = fit.world_of(scene, words, size[1] / size[0])
    now = renderer.one(fit.pose_of(found, world), i)
    x, y, pixel = renderer.camera(world, found.time, size)
    haze = scenes.fog(world, *renderer.grid(size)[:2]) * (world.weather == scenes.FOG)
    mine, its = layers.things[i], layers.things[1 - i]
    in_front = found.front == i

    def error(drawing):
        low = jnp.where(in_front, its, drawing)
        high = jnp.where(in_front, drawing, its)
        laid = renderer.over(renderer.over(layers.behind, low), high)
        return jnp.sum(jnp.square(picture - laid))

    def of(row):
        drawn = renderer.shaded(world, renderer.drawing(texels[row], now, x, y, pixel))
        colours = drawn[..., :3] * (1 - haze)[..., None]
        colours = colours + drawn[..., 3:] * (haze * scenes.brightness(world))[..., None]
        return error(jnp.concatenate([colours, drawn[..., 3:]], axis=-1))

    asked = jnp.where(i == 0, words[0], words[6]) + words[1] * atlas.COUNT
    rows = jnp.arange(len(STYLES) * atlas.COUNT)
    errors = jax.lax.map(of, rows, batch_size=10)
    least = jnp.min(jnp.where(rows == asked, jnp.inf, errors))
    return (error(mine) - least) / (jnp.sum(mine[..., 3] * _contrast(layers, i)) + 1e-6)
