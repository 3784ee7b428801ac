"""The true render nearest to a picture: the asked-for words are given, all else is fitted.

A picture of the toybox is known up to a dozen numbers: where the thing is, how large and how far
turned, its pattern and light, and the scene's horizon, tone and camera. So what a picture is
measured against is found by least squares over the renderer itself, frame by frame: the scene
first, robustly, so that the thing does not count; then a place for the thing where the picture
departs from the scene; then the thing, from each pattern and, for what spins, from angles all
around. Damped Gauss-Newton steps with weights that forget what cannot be explained, so that a bite
or a lump does not drag the outline along. Nothing is learnt.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.toybox import renderer, things
from mv2_jax.toybox.masks import small
from mv2_jax.toybox.world import BOUNCING, FALLING, RISING, SPINNING, Pose, World

ANGLES = 8  # at which what spins is tried
_COARSE = 32  # height at which starts are compared
_AT_ONCE = 8
_SCALE = 0.12  # of a residual beyond which it counts less and less, colours in [0, 1]
_COARSE_SCALE = 0.4  # while starts are compared: what is far off must pull
_REFINED, _GOOD = 4, 0.012  # so many starts go on, until one costs less than this
_DISCS = (0.3, 0.38, 0.46, 0.56)  # radii tried for the thing's place, in half heights


class Fit(NamedTuple):
    """Of pictures [N]: the thing's centre and radius (half frame heights), angle (radians), squash
    (0 to 1), pattern, its phase, light and floor; the scene's horizon, hue, camera and time."""

    x: jax.Array
    y: jax.Array
    radius: jax.Array
    angle: jax.Array
    squash: jax.Array
    phase: jax.Array
    light: jax.Array
    floor: jax.Array
    pattern: jax.Array
    horizon: jax.Array
    hue: jax.Array
    camera: jax.Array
    time: jax.Array


def world_of(found: Fit, words) -> World:
    """The world of a fit (scalars) and words [4]; its pose is `pose_of`."""
    zero = jnp.zeros_like(found.x)
    return World(
        *(words[i] for i in range(4)),
        radius=found.radius,
        x=zero,
        y=zero,
        travel=zero,
        tilt=zero,
        pattern=found.pattern,
        phase=found.phase,
        light=found.light,
        horizon=found.horizon,
        hue=found.hue,
        scroll=found.camera,
        pan=zero,
    )


def pose_of(found: Fit) -> Pose:
    """The thing's pose in half frame heights."""
    return Pose(
        x=found.x,
        y=found.y,
        radius=found.radius,
        angle=found.angle,
        stretch_x=1.0 + 0.14 * found.squash,
        stretch_y=1.0 - 0.2 * found.squash,
        floor=found.floor,
    )


class FitLayers(NamedTuple):
    """A fit drawn, in [0, 1]: the thing and what is behind it [H, W, 3], its cover [H, W]."""

    thing: jax.Array
    behind: jax.Array
    cover: jax.Array

    @property
    def picture(self) -> jax.Array:
        cover = self.cover[..., None]
        return jnp.clip(self.behind + cover * (self.thing - self.behind), 0.0, 1.0)


def draw(found: Fit, words, size) -> FitLayers:
    """The layers of one fit (scalars) with words [4], at `size` (static)."""
    world = world_of(found, words)
    plain, ground = renderer.scene_picture(world, found.time, size)
    return _thing_over(world, pose_of(found), plain, ground, size)


def _thing_over(world, now, plain, ground, size) -> FitLayers:
    thing, cover, dark = renderer.thing_masks(world, now, ground, size)
    paint = jax.lax.map(lambda one: things.paint(one, thing), things.palette(world))
    return FitLayers(jnp.moveaxis(paint, 0, -1), plain * dark[..., None], cover)


def minimise(residual, start, prior, spread, scales):
    """Damped Gauss-Newton on robust residuals.

    Args:
        residual: [P] -> [M]. start: [P]. prior, spread: [P], where each number is likely to be.
        scales: [steps], of a residual beyond which it counts less and less, step by step.

    Returns:
        (numbers [P], mean robust cost at the last scale).
    """

    def cost_of(p, r, scale):
        square = jnp.square(r / scale)
        return jnp.mean(square / (1 + square)) + 1e-4 * jnp.sum(jnp.square((p - prior) / spread))

    def step(carry, scale):
        p, damp = carry
        r, push = jax.linearize(residual, p)
        columns = jax.vmap(push)(jnp.eye(len(p)))  # [P, M]
        weight = 1 / jnp.square(1 + jnp.square(r / scale)) / scale**2 / r.size
        weighted = columns * weight[None]
        normal = weighted @ columns.T
        ridge = 1e-4 / spread**2
        slope = weighted @ r + ridge * (p - prior)
        diagonal = jnp.diag(normal) + ridge
        normal = normal + jnp.diag(ridge + damp * diagonal)
        # Scaled, so that fp32 solves it whatever the units.
        unit = jax.lax.rsqrt(diagonal + 1e-12)
        move = unit * jnp.linalg.solve(normal * unit[None] * unit[:, None], slope * unit)
        new = p - jnp.clip(move, -spread, spread)
        better = cost_of(new, residual(new), scale) < cost_of(p, r, scale)
        return (jnp.where(better, new, p), jnp.where(better, damp * 0.3, damp * 4.0)), None

    (p, _), _ = jax.lax.scan(step, (start, jnp.float32(0.01)), scales)
    return p, cost_of(p, residual(p), scales[-1])


def scales(wide: int, narrow: int):
    """Steps from the wide scale down to the narrow one, and then so many at that."""
    return jnp.concatenate(
        [jnp.geomspace(_COARSE_SCALE, _SCALE, wide), jnp.full(narrow, _SCALE)]
    ).astype(jnp.float32)


_SCENE_PRIOR, _SCENE_SPREAD = (-0.23, 0.0, 0.0, 0.5), (0.15, 0.6, 0.3, 0.35)


def _scene(picture, words, size):
    """Horizon, hue, camera and time [4] of the scene in a picture [H, W, 3] in [0, 1]."""

    def draw_scene(p, size):
        found = Fit(*([jnp.float32(0.0)] * 9), *p)
        found = found._replace(radius=jnp.float32(1.0))
        return renderer.scene_picture(world_of(found, words), p[3], size)[0]

    coarse = (_COARSE // 2, max(1, round(_COARSE // 2 * size[1] / size[0])))
    seen = jax.image.resize(picture, (*coarse, 3), "linear", antialias=True)
    horizons, cameras = jnp.linspace(-0.36, -0.1, 4), jnp.linspace(-0.38, 0.38, 7)
    grid = jnp.stack(jnp.meshgrid(horizons, cameras, indexing="ij"), -1).reshape(-1, 2)

    def cost(pair):
        p = jnp.stack([pair[0], 0.0, pair[1], 0.5])
        square = jnp.square((draw_scene(p, coarse) - seen) / _SCALE)
        return jnp.mean(square / (1 + square))

    best = grid[jnp.argmin(jax.vmap(cost)(grid))]
    start = jnp.stack([best[0], 0.0, best[1], 0.5])
    prior, spread = jnp.array(_SCENE_PRIOR), jnp.array(_SCENE_SPREAD)
    half = (_COARSE, max(1, round(_COARSE * size[1] / size[0])))
    seen = jax.image.resize(picture, (*half, 3), "linear", antialias=True)
    start, _ = minimise(
        lambda p: (draw_scene(p, half) - seen).ravel(), start, prior, spread, scales(3, 3)
    )
    return minimise(
        lambda p: (draw_scene(p, size) - picture).ravel(), start, prior, spread, scales(2, 5)
    )[0]


def _place(picture, plain):
    """Where discs fit best what departs from the scene: x, y and radius in half heights."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    change = jnp.abs(picture - plain).max(axis=-1)
    change = jax.image.resize(change, (height, width), "linear", antialias=True)
    change = jnp.square(change) / (jnp.square(change) + 0.1**2)
    reach = int(0.7 * height / 2 + 1)
    at = np.arange(-reach, reach + 1) * 2 / height
    far = np.hypot(at[:, None], at[None])
    kernels = []
    for radius in _DISCS:
        inside, around = far < radius, (far >= radius) & (far < radius + 0.14)
        kernels.append((inside / inside.sum() - around / around.sum()) * np.sqrt(radius))
    score = jax.lax.conv_general_dilated(
        change[None, None], jnp.asarray(np.stack(kernels)[:, None], jnp.float32), (1, 1), "SAME"
    )[0]
    index = jnp.argmax(score)
    disc, row, column = index // (height * width), index // width % height, index % width
    x = ((column + 0.5) - width / 2) * 2 / height
    y = 1 - (row + 0.5) * 2 / height
    return x, y, jnp.asarray(_DISCS)[disc]


def _one(picture, words, size):
    """The fit of one picture [H, W, 3] in [0, 1], and its robust cost."""
    motion = words[3]
    scene = _scene(picture, words, size)
    none = jnp.float32(0.0)
    pose = (none, none, none, none, none, none, none, none, jnp.int32(0))
    base = Fit(*pose, scene[0], scene[1], scene[2], scene[3])
    plain, ground = renderer.scene_picture(world_of(base, words), scene[3], size)
    x, y, radius = _place(picture, plain)
    vertical = (motion == RISING) | (motion == FALLING)
    # What bounces, rises or falls has its floor anywhere, and the rest right beneath.
    flies = vertical | (motion == BOUNCING)
    floor = jnp.where(vertical, -0.8, jnp.where(motion == BOUNCING, -0.74, 0.0))
    spins = motion == SPINNING
    # x, y, log radius, angle, squash, phase, light, floor.
    squash = jnp.where(motion == BOUNCING, 0.4, 1e-3)
    one = jnp.ones(())
    spread = jnp.stack(
        [0.2 * one, 0.2 * one, 0.2 * one, jnp.where(spins, 0.5, 0.2), squash, 0.1 * one,
         0.5 * one, jnp.where(flies, 0.2, 0.02)]
    )  # fmt: skip
    start = jnp.stack([x, y, jnp.log(radius), 0 * one, 0 * one, 0 * one, 0 * one, floor])

    def found(p, pattern):
        thing = base._replace(**dict(zip(Fit._fields, p)), pattern=jnp.int32(pattern))
        radius = jnp.exp(p[2])
        beneath = jnp.where(flies, 0.0, thing.y - 0.92 * radius)
        return thing._replace(radius=radius, floor=beneath + p[7])

    def residual(p, pattern, seen, plain, ground, size):
        fit = found(p, pattern)
        layers = _thing_over(world_of(fit, words), pose_of(fit), plain, ground, size)
        return (layers.picture - seen).ravel()

    half = (_COARSE, max(1, round(_COARSE * size[1] / size[0])))
    resize = partial(jax.image.resize, method="linear", antialias=True)
    coarse = (resize(picture, (*half, 3)), resize(plain, (*half, 3)), resize(ground, half))

    def attempt(i, tried):
        """The i-th start: each pattern, at each angle where it spins, else from other places. One
        after another, so that it compiles once and only what spins takes them all."""
        turn, moved = jnp.where(spins, i // 2, 0), jnp.where(spins, 0, i // 2)
        shift = jnp.stack([jnp.zeros(()), jnp.asarray([0.0, 0.12, -0.08])[moved]])
        begin = start.at[3].set(2 * jnp.pi / ANGLES * turn).at[:2].add(shift)
        p, cost = minimise(
            lambda p: residual(p, i % 2, *coarse, half),
            begin,
            begin,
            spread,
            jnp.full(9, _COARSE_SCALE),
        )
        return tried[0].at[i].set(p), tried[1].at[i].set(cost)

    none = jnp.zeros((2 * ANGLES, len(start))), jnp.full(2 * ANGLES, jnp.inf)
    tried, costs = jax.lax.fori_loop(0, jnp.where(spins, 2 * ANGLES, 6), attempt, none)
    order = jnp.argsort(costs)

    def refine(carry):
        """From the next best start on, at full size."""
        i, *best = carry
        p = tried[order[i]]
        prior = p.at[3].set(jnp.where(spins, p[3], 0.0))
        pattern = order[i] % 2
        p, cost = minimise(
            lambda p: residual(p, pattern, picture, plain, ground, size),
            p,
            prior,
            spread,
            scales(4, 9),
        )
        better = cost < best[2]
        return i + 1, *jax.tree.map(partial(jnp.where, better), (p, pattern, cost), tuple(best))

    first = (jnp.int32(0), start, jnp.int32(0), jnp.float32(jnp.inf))
    _, p, pattern, cost = jax.lax.while_loop(
        lambda carry: (carry[0] < _REFINED) & (carry[3] > _GOOD), refine, first
    )
    return found(p, pattern), cost


@jax.jit
def _fit(pictures, words):
    size = pictures.shape[1:3]
    return jax.lax.map(lambda pair: _one(pair[0], pair[1], size), (pictures, words))


def fit(pictures, words) -> tuple[Fit, np.ndarray]:
    """Fits of pictures [N, H, W, 3] (uint8, or float in [-1, 1]) to words [N, 4].

    Returns:
        (Fit of arrays [N], the fits' robust costs [N], 0 to 1).
    """
    parts = []
    for start in range(0, len(pictures), _AT_ONCE):
        part = np.asarray(pictures[start : start + _AT_ONCE])
        asked = np.asarray(words[start : start + _AT_ONCE], np.int32)
        missing = _AT_ONCE - len(part)
        part = np.pad(part, [(0, missing)] + [(0, 0)] * 3, mode="edge")
        asked = np.pad(asked, [(0, missing), (0, 0)], mode="edge")
        found = jax.device_get(_fit(small(part) * 0.5 + 0.5, jnp.asarray(asked)))
        parts.append(jax.tree.map(lambda leaf, n=_AT_ONCE - missing: leaf[:n], found))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
