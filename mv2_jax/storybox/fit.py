"""The true render nearest to a picture: the asked-for words are given, all else is fitted.

As in the toybox: the scene first, robustly; then each thing's drawing is looked for at every place,
in several sizes and turns and mirrored (the exact least squares of laying it there, by
convolution); then damped Gauss-Newton on the picture itself moves both things at once. Which of
two is in front is whichever order explains the picture better. Rain and snow are not fitted: what
falls counts little, robustly. Nothing is learnt.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.storybox import atlas, renderer, scenes
from mv2_jax.storybox.vocabulary import NOTHING
from mv2_jax.storybox.world import BEHIND, HOPPING, ROLLING, ZOOM, ZOOMING, Pose, World, view
from mv2_jax.toybox.fit import minimise, scales
from mv2_jax.toybox.masks import small

_COARSE, _SEARCH = 16, 32  # heights at which scenes are compared first, and things looked for
_RADII = (0.22, 0.29, 0.38, 0.5, 0.68)  # of things in the picture, half heights
_TURNS = 12
_SCALE = 0.1


class Fit(NamedTuple):
    """Of a picture: both things' centre, radius, angle, squash and mirror [2] (in the world, before
    the camera's zoom); floor; the scene's horizon, hue, camera and time, and what the camera is
    turned to; `front`: which thing is in front (0 or 1); `sure`: by how much the other order
    explains the picture less well."""

    x: jax.Array
    y: jax.Array
    radius: jax.Array
    angle: jax.Array
    squash: jax.Array
    mirror: jax.Array
    floor: jax.Array
    horizon: jax.Array
    hue: jax.Array
    camera: jax.Array
    time: jax.Array
    to_x: jax.Array
    to_y: jax.Array
    front: jax.Array
    sure: jax.Array


class Layers(NamedTuple):
    """A fit drawn, in [0, 1]: the picture and what is behind the things [H, W, 3], and the things'
    drawings [2, H, W, 4]."""

    picture: jax.Array
    behind: jax.Array
    things: jax.Array


def world_of(scene, words, aspect: float = 1.0) -> World:
    """The world of words [WORDS] and a scene's numbers (horizon, hue, camera, time, to_x, to_y)."""
    zero = jnp.zeros(())
    return World(
        *(words[i] for i in range(9)),
        radius=zero,
        size=zero + 1,
        x=2 * scene[4] / aspect,
        floor=scene[5],
        travel=zero + 1,
        heading=zero + 1,
        other=zero + 1,
        side=zero + 1,
        light=zero,
        horizon=scene[0],
        hue=scene[1],
        scroll=scene[2],
        pan=zero,
        phase=zero,
    )


def draw(found: Fit, words, size, texels) -> Layers:
    """The layers of one fit (scalars) with words [WORDS], at `size` (static)."""
    scene = jnp.stack([found.horizon, found.hue, found.camera, found.time, found.to_x, found.to_y])
    world = world_of(scene, words, size[1] / size[0])
    backdrop = _fogged(world, *renderer.backdrop(world, found.time, size, texels), size)
    return _layers(found, world, *backdrop, size, texels)


def _fogged(world, plain, ground, size):
    """A backdrop with the fog over it, of which things get their share in `_layers`."""
    return _fog(world, plain, size), ground


def _fog(world, picture, size):
    cover = scenes.fog(world, *renderer.grid(size)[:2]) * (world.weather == scenes.FOG)
    return picture + cover[..., None] * (scenes.brightness(world) - picture)


def _layers(found: Fit, world, plain, ground, size, texels) -> Layers:
    """Things over a fogged backdrop."""
    now = pose_of(found, world)
    things = renderer.drawings(world, found.time, now, size, texels)
    light = renderer.shadows(world, found.time, now, ground, size)
    haze = scenes.fog(world, *renderer.grid(size)[:2]) * (world.weather == scenes.FOG)
    colours = things[..., :3] * (1 - haze)[None, ..., None]
    colours = colours + things[..., 3:] * (haze * scenes.brightness(world))[None, ..., None]
    things = jnp.concatenate([colours, things[..., 3:]], axis=-1)
    behind = plain * (1 - (1 - light) * (1 - haze))[..., None]
    swapped = found.front > 0
    low = jnp.where(swapped, things[0], things[1])
    high = jnp.where(swapped, things[1], things[0])
    return Layers(
        jnp.clip(renderer.over(renderer.over(behind, low), high), 0.0, 1.0), behind, things
    )


def pose_of(found: Fit, world) -> Pose:
    """Both things' poses."""
    deeper = jnp.where(world.relation == BEHIND, 0.2, 0.0)
    return Pose(
        x=found.x,
        y=found.y,
        radius=found.radius,
        angle=found.angle,
        stretch_x=1.0 + 0.12 * found.squash,
        stretch_y=1.0 - 0.18 * found.squash,
        mirror=found.mirror,
        floor=jnp.stack([found.floor, found.floor + deeper]),
    )


_PRIOR = (-0.19, 0.0, 0.0, 0.5, 0.0, -0.5)
_SPREAD = (0.12, 0.6, 0.5, 0.35, 0.06, 0.06)


def _scene(picture, words, size, texels):
    """The scene's numbers [6] in a picture [H, W, 3] in [0, 1]."""

    def draw_scene(p, size):
        world = world_of(p, words, size[1] / size[0])
        return _fog(world, renderer.backdrop(world, p[3], size, texels)[0], size)

    def wide(height):
        return height, max(1, round(height * size[1] / size[0]))

    coarse = wide(_COARSE)
    seen = jax.image.resize(picture, (*coarse, 3), "linear", antialias=True)
    zooms = words[5] == ZOOMING
    grid = jnp.stack(
        jnp.meshgrid(jnp.linspace(-0.3, -0.08, 3), jnp.linspace(-0.8, 0.8, 9),
                     jnp.asarray([0.1, 0.5, 0.9]), indexing="ij"), -1,
    ).reshape(-1, 3)  # fmt: skip

    def start(triple):
        p = jnp.asarray(_PRIOR).at[0].set(triple[0]).at[2].set(triple[1])
        return p.at[3].set(jnp.where(zooms, triple[2], 0.5))

    def cost(triple):
        square = jnp.square((draw_scene(start(triple), coarse) - seen) / _SCALE)
        return jnp.mean(square / (1 + square))

    begin = start(grid[jnp.argmin(jax.lax.map(cost, grid))])
    prior, spread = jnp.asarray(_PRIOR), jnp.asarray(_SPREAD)
    half = wide(_SEARCH)
    seen = jax.image.resize(picture, (*half, 3), "linear", antialias=True)
    begin, _ = minimise(
        lambda p: (draw_scene(p, half) - seen).ravel(), begin, prior, spread, scales(4, 4)
    )
    return minimise(
        lambda p: (draw_scene(p, size) - picture).ravel(), begin, prior, spread, scales(1, 4)
    )[0]


def _kernels(texels, angles, tint):
    """A drawing in every size, turn and mirror, [K, n, n, 4], and their (radius, angle, mirror)
    [K, 3]."""
    pixel = 2.0 / _SEARCH
    reach = int(np.ceil(max(_RADII) * 1.2 / pixel))
    at = np.arange(-reach, reach + 1) * pixel
    mirrors = jnp.asarray([-1.0, 1.0])
    options = jnp.stack(
        jnp.meshgrid(jnp.asarray(_RADII), angles, mirrors, indexing="ij"), -1
    ).reshape(-1, 3)

    def one(option):
        zero, unit = jnp.zeros(()), jnp.ones(())
        now = Pose(zero, zero, option[0], option[1], unit, unit, option[2], zero)
        return renderer.drawing(texels, now, at[None].astype(np.float32),
                                -at[:, None].astype(np.float32), pixel)  # fmt: skip

    drawn = jax.lax.map(one, options)
    return jnp.concatenate([drawn[..., :3] * tint[None, None, None], drawn[..., 3:]], -1), options


def _place(change, plain, drawn, options):
    """Where laying a drawing over a backdrop explains most.

    Args:
        change, plain: [h, w, 3], the picture less the backdrop, and the backdrop.
        drawn, options: of `_kernels`.

    Returns:
        (x, y, radius, angle, mirror) in the picture.
    """
    height, width = change.shape[:2]
    colour, cover = drawn[..., :3], drawn[..., 3:]

    def slid(planes, kernels):
        """Sums [K, h, w] of planes [h, w, C] times kernels [K, n, n, C] at every place."""
        return jax.lax.conv_general_dilated(
            planes[None], jnp.transpose(kernels, (1, 2, 3, 0)), (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )[0]  # fmt: skip

    # The square of change - (colour - cover * plain) less that of change alone, term by term.
    ones = jnp.ones_like(plain)
    cost = slid(ones, colour**2) - 2 * slid(plain, cover * colour)
    cost = cost + slid(plain**2, jnp.broadcast_to(cover**2, colour.shape))
    cost = cost - 2 * slid(change, colour)
    cost = cost + 2 * slid(change * plain, jnp.broadcast_to(cover, colour.shape))
    index = jnp.argmin(cost)
    kinds = cost.shape[2]
    row, column, kind = index // (width * kinds), index // kinds % width, index % kinds
    x = (2 * column + 1 - width) / height
    y = 1 - (2 * row + 1) / height
    return jnp.concatenate([jnp.stack([x, y]), options[kind]])


def _one(picture, words, size, texels):
    """The fit of one picture [H, W, 3] in [0, 1], and its robust cost."""
    aspect = size[1] / size[0]
    scene = _scene(picture, words, size, texels)
    world = world_of(scene, words, aspect)
    plain, ground = _fogged(world, *renderer.backdrop(world, scene[3], size, texels), size)
    half = (_SEARCH, max(1, round(_SEARCH * aspect)))
    few, few_plain = (
        jax.image.resize(each, (*half, 3), "linear", antialias=True) for each in (picture, plain)
    )
    rolls = words[5] == ROLLING
    turns = jnp.arange(_TURNS) / _TURNS
    tint = jnp.asarray(scenes.TINT)[world.hour]

    def place(row, free, behind):
        """A thing's place in what a picture without it leaves, and the picture with it."""
        angles = jnp.where(free, 2 * jnp.pi * turns, 0.4 * (2 * turns - 1) * _TURNS / (_TURNS - 1))
        start = _place(few - behind, behind, *_kernels(texels[row], angles, tint))
        unit, still = jnp.ones(()), jnp.zeros(())
        now = Pose(start[0], start[1], start[2], start[3], unit, unit, start[4], still)
        laid = renderer.drawing(texels[row], now, *renderer.grid(half))
        colours = laid[..., :3] * tint[None, None]
        return start, renderer.over(behind, jnp.concatenate([colours, laid[..., 3:]], -1))

    row, free = jnp.stack(renderer.rows(world)), jnp.stack([rolls, rolls & False])

    def search(first):
        """Both things' places [2, 5], `first` (0 or 1) being looked for before the other."""
        begun, laid = place(row[first], free[first], few_plain)
        after, _ = place(row[1 - first], free[1 - first], laid)
        return jnp.where(first == 0, jnp.stack([begun, after]), jnp.stack([after, begun]))

    # Whichever is looked for first may be taken for the other: both ways are tried.
    searched = jax.lax.map(search, jnp.arange(2))  # [2, 2, 5]
    to_x, to_y, near = view(world, scene[3], aspect)
    hops = jnp.stack([words[5] == HOPPING, (words[6] != NOTHING) & (words[8] == 1)])

    def begin(starts):
        x = to_x + (starts[:, 0] - to_x) / near
        y = to_y + (starts[:, 1] - to_y) / near
        size, squash = jnp.log(starts[:, 2] / near), jnp.where(hops, 0.3, 0.0)
        start = jnp.stack([x, y, size, starts[:, 3], squash])
        return jnp.concatenate([start.ravel(), jnp.asarray([-0.7])])

    ones = jnp.ones(2)
    turning = jnp.stack([jnp.where(rolls, 1.0, 0.4), jnp.asarray(0.4)])
    spread = jnp.stack([0.2 * ones, 0.2 * ones, 0.25 * ones, turning, jnp.where(hops, 0.4, 1e-3)])
    spread = jnp.concatenate([spread.ravel(), jnp.asarray([0.1])])

    def found(p, mirror, front):
        x, y, radius, angle, squash = p[:10].reshape(5, 2)
        numbers = (x, y, jnp.exp(radius), angle, squash, mirror, p[10], *scene)
        return Fit(*numbers, front=front, sure=jnp.zeros(()))

    def attempt(which):
        """From one search, with one of the things in front."""
        starts, front = searched[which // 2], which % 2
        start = begin(starts)

        def residual(p):
            fitted = found(p, starts[:, 4], front)
            return (_layers(fitted, world, plain, ground, size, texels).picture - picture).ravel()

        p, cost = minimise(residual, start, start, spread, scales(4, 8))
        return p, starts[:, 4], cost

    pair = words[6] != NOTHING
    tried, mirrors, costs = jax.lax.map(attempt, jnp.arange(4))
    best = jnp.where(pair, jnp.argmin(costs), 0)
    front = best % 2
    fitted = found(tried[best], mirrors[best], front)
    other = jnp.min(jnp.where(jnp.arange(4) % 2 == front, jnp.inf, costs))
    return fitted._replace(sure=jnp.where(pair, other - costs[best], 0.0)), costs[best]


@jax.jit
def _fit(pictures, words, texels):
    size = pictures.shape[1:3]
    return jax.lax.map(lambda pair: _one(pair[0], pair[1], size, texels), (pictures, words))


_AT_ONCE = 8


def fit(pictures, words) -> tuple[Fit, np.ndarray]:
    """Fits of pictures [N, H, W, 3] (uint8, or float in [-1, 1]) to words [N, WORDS].

    Returns:
        (Fit of arrays [N, ...], the fits' robust costs [N], 0 to 1).
    """
    parts = []
    for start in range(0, len(pictures), _AT_ONCE):
        part = np.asarray(pictures[start : start + _AT_ONCE])
        asked = np.asarray(words[start : start + _AT_ONCE], np.int32)
        missing = _AT_ONCE - len(part)
        part = np.pad(part, [(0, missing)] + [(0, 0)] * 3, mode="edge")
        asked = np.pad(asked, [(0, missing), (0, 0)], mode="edge")
        given = (small(part) * 0.5 + 0.5, jnp.asarray(asked), atlas.texels())
        found = jax.device_get(_fit(*given))
        parts.append(jax.tree.map(lambda leaf, n=_AT_ONCE - missing: leaf[:n], found))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def zoom(found: Fit) -> np.ndarray:
    """How many octaves nearer the camera is."""
    return ZOOM * np.asarray(found.time)
