"""The six scenes, drawn by one program from a table of a few numbers each.

A scene is a sky of three colours, a sun or moon with a glow, soft white blobs (stars or clouds)
at fixed places of the world, three layers of land or water whose edges are slow waves, and soft
marks on the ground. Everything is smooth and of few parameters, on purpose: a small network with
a coarse latent space should be able to learn all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Layer(NamedTuple):
    """One layer: its edge is base + height * wave(rate * x); colours at its edge and deep below.

    `peaked` 0 is a sine, 1 a triangle wave. `flow`: how far it slides over the clip (waves).
    """

    base: float
    height: float
    rate: float
    peaked: float
    flow: float
    edge: tuple[float, float, float]
    deep: tuple[float, float, float]


class Scene(NamedTuple):
    """Colours in [0, 1]; places in half frame heights, relative to the horizon for `disc`."""

    top: tuple[float, float, float]
    middle: tuple[float, float, float]
    low: tuple[float, float, float]
    disc: tuple[float, float, float]  # x, height above the horizon, radius
    disc_colour: tuple[float, float, float]
    glow: tuple[float, float]  # strength, width
    blobs: tuple[tuple[float, float, float, float, float], ...]  # x, y, width, height, strength
    marks: tuple[tuple[float, float, float, float, float], ...]
    mark_colour: tuple[float, float, float]
    layers: tuple[Layer, Layer, Layer]


STARS = tuple(
    (x, y, s, s, 1.0)
    for x, y, s in (
        (-1.25, 0.55, 0.03),
        (-0.98, 0.86, 0.025),
        (-0.78, 0.3, 0.028),
        (-0.5, 0.72, 0.034),
        (-0.22, 0.42, 0.024),
        (0.02, 0.88, 0.03),
        (0.26, 0.58, 0.026),
        (0.5, 0.2, 0.028),
        (0.95, 0.36, 0.03),
        (1.2, 0.8, 0.026),
    )
)
CLOUDS = (
    (-0.92, 0.62, 0.24, 0.07, 0.85),
    (-0.75, 0.7, 0.14, 0.09, 0.85),
    (-0.6, 0.61, 0.16, 0.06, 0.7),
    (0.5, 0.8, 0.22, 0.06, 0.8),
    (0.66, 0.86, 0.13, 0.08, 0.8),
    (0.82, 0.79, 0.17, 0.05, 0.7),
)
FLOWERS = tuple(
    (x, y, 0.035, 0.028, 1.0)
    for x, y in (
        (-1.1, -0.72),
        (-0.78, -0.9),
        (-0.48, -0.68),
        (-0.2, -0.86),
        (0.12, -0.7),
        (0.44, -0.9),
        (0.74, -0.72),
        (1.08, -0.86),
    )
)
GLITTER = tuple(
    (x, y, 0.2, 0.014, 0.5)
    for x, y in (
        (-0.95, -0.5),
        (-0.5, -0.62),
        (-0.05, -0.48),
        (0.45, -0.6),
        (0.95, -0.5),
        (-0.7, -0.85),
        (0.1, -0.88),
        (0.8, -0.83),
    )
)

SCENES = (
    Scene(  # night sky
        top=(0.02, 0.03, 0.13),
        middle=(0.07, 0.08, 0.26),
        low=(0.20, 0.19, 0.42),
        disc=(0.72, 0.95, 0.15),
        disc_colour=(0.97, 0.95, 0.82),
        glow=(0.35, 0.3),
        blobs=STARS,
        marks=(),
        mark_colour=(0.1, 0.1, 0.2),
        layers=(
            Layer(-0.02, 0.09, 2.2, 0.5, 0.0, (0.13, 0.13, 0.31), (0.10, 0.10, 0.26)),
            Layer(-0.16, 0.08, 1.6, 0.2, 0.0, (0.08, 0.10, 0.24), (0.06, 0.07, 0.18)),
            Layer(-0.40, 0.06, 1.1, 0.0, 0.0, (0.05, 0.08, 0.17), (0.02, 0.04, 0.10)),
        ),
    ),
    Scene(  # sunset
        top=(0.36, 0.22, 0.50),
        middle=(0.90, 0.47, 0.45),
        low=(1.00, 0.80, 0.48),
        disc=(-0.3, 0.14, 0.3),
        disc_colour=(1.00, 0.95, 0.70),
        glow=(0.6, 0.5),
        blobs=((-0.9, 0.5, 0.4, 0.03, 0.35), (0.6, 0.36, 0.45, 0.03, 0.35)),
        marks=(),
        mark_colour=(0.3, 0.2, 0.2),
        layers=(
            Layer(0.0, 0.06, 1.9, 0.4, 0.0, (0.62, 0.32, 0.42), (0.52, 0.27, 0.40)),
            Layer(-0.15, 0.07, 1.5, 0.2, 0.0, (0.42, 0.21, 0.34), (0.33, 0.17, 0.30)),
            Layer(-0.38, 0.06, 1.0, 0.0, 0.0, (0.28, 0.14, 0.25), (0.16, 0.08, 0.17)),
        ),
    ),
    Scene(  # meadow
        top=(0.30, 0.60, 0.93),
        middle=(0.52, 0.77, 0.97),
        low=(0.82, 0.93, 0.98),
        disc=(0.1, 2.5, 0.1),
        disc_colour=(1.0, 0.98, 0.8),
        glow=(0.0, 0.3),
        blobs=CLOUDS,
        marks=FLOWERS,
        mark_colour=(1.0, 0.98, 0.86),
        layers=(
            Layer(0.02, 0.08, 1.7, 0.0, 0.0, (0.56, 0.76, 0.50), (0.48, 0.70, 0.42)),
            Layer(-0.12, 0.08, 1.3, 0.0, 0.0, (0.58, 0.80, 0.38), (0.44, 0.68, 0.28)),
            Layer(-0.36, 0.06, 1.0, 0.0, 0.0, (0.62, 0.84, 0.34), (0.36, 0.60, 0.20)),
        ),
    ),
    Scene(  # sea
        top=(0.42, 0.72, 0.95),
        middle=(0.66, 0.86, 0.97),
        low=(0.92, 0.97, 0.96),
        disc=(0.6, 0.85, 0.13),
        disc_colour=(1.0, 0.98, 0.80),
        glow=(0.5, 0.3),
        blobs=CLOUDS[:3],
        marks=GLITTER,
        mark_colour=(0.80, 0.96, 0.94),
        layers=(
            Layer(0.0, 0.0, 1.0, 0.0, 0.0, (0.30, 0.66, 0.74), (0.12, 0.50, 0.62)),
            Layer(-0.22, 0.022, 6.0, 0.0, 0.18, (0.34, 0.72, 0.74), (0.08, 0.44, 0.55)),
            Layer(-0.48, 0.032, 4.0, 0.0, -0.22, (0.32, 0.70, 0.70), (0.04, 0.34, 0.44)),
        ),
    ),
    Scene(  # desert
        top=(0.48, 0.74, 0.88),
        middle=(0.72, 0.86, 0.88),
        low=(0.97, 0.93, 0.80),
        disc=(-0.62, 0.95, 0.16),
        disc_colour=(1.0, 0.99, 0.86),
        glow=(0.55, 0.32),
        blobs=(),
        marks=(),
        mark_colour=(0.9, 0.8, 0.6),
        layers=(
            Layer(0.0, 0.10, 1.5, 0.7, 0.0, (0.86, 0.70, 0.52), (0.80, 0.62, 0.45)),
            Layer(-0.18, 0.12, 1.1, 0.6, 0.0, (0.95, 0.80, 0.56), (0.78, 0.57, 0.36)),
            Layer(-0.42, 0.10, 0.9, 0.4, 0.0, (0.97, 0.83, 0.58), (0.76, 0.53, 0.32)),
        ),
    ),
    Scene(  # snow
        top=(0.55, 0.65, 0.80),
        middle=(0.70, 0.79, 0.89),
        low=(0.84, 0.89, 0.94),
        disc=(0.1, 2.5, 0.1),
        disc_colour=(1.0, 1.0, 1.0),
        glow=(0.0, 0.3),
        blobs=(),
        marks=(
            (-0.7, -0.62, 0.32, 0.035, 0.5),
            (0.3, -0.55, 0.36, 0.03, 0.5),
            (0.85, -0.8, 0.3, 0.04, 0.5),
            (-0.3, -0.87, 0.34, 0.04, 0.5),
        ),
        mark_colour=(0.66, 0.77, 0.93),
        layers=(
            Layer(0.14, 0.17, 1.9, 1.0, 0.0, (0.66, 0.75, 0.88), (0.56, 0.66, 0.82)),
            Layer(-0.10, 0.06, 1.4, 0.0, 0.0, (0.90, 0.94, 0.99), (0.74, 0.83, 0.95)),
            Layer(-0.36, 0.06, 1.0, 0.0, 0.0, (0.92, 0.96, 1.00), (0.76, 0.85, 0.97)),
        ),
    ),
)


class Table(NamedTuple):
    """Scenes as arrays with a row each, which `masks` and `palette` look up by `world.scene`."""

    colours: dict[str, np.ndarray]  # top, middle, low, disc_colour, mark_colour [scenes, 3]
    disc: np.ndarray
    glow: np.ndarray
    blobs: np.ndarray  # [scenes, K, 5], padded with spots of no strength
    marks: np.ndarray
    shapes: np.ndarray  # [scenes, 3, 5], of layers
    edges: np.ndarray  # [scenes, 3, 3], colours of layers
    deeps: np.ndarray


def table(scenes: Sequence[Scene]) -> Table:
    """The table of these scenes."""

    def column(name: str) -> np.ndarray:
        return np.array([getattr(scene, name) for scene in scenes], np.float32)

    def spots(name: str) -> np.ndarray:
        lists = [getattr(scene, name) for scene in scenes]
        count = max(len(spots) for spots in lists)
        none = (0.0, 0.0, 1.0, 1.0, 0.0)
        return np.array([[*s, *[none] * (count - len(s))] for s in lists], np.float32)

    return Table(
        colours={n: column(n) for n in ("top", "middle", "low", "disc_colour", "mark_colour")},
        disc=column("disc"),
        glow=column("glow"),
        blobs=spots("blobs"),
        marks=spots("marks"),
        shapes=np.array([[layer[:5] for layer in s.layers] for s in scenes], np.float32),
        edges=np.array([[layer.edge for layer in s.layers] for s in scenes], np.float32),
        deeps=np.array([[layer.deep for layer in s.layers] for s in scenes], np.float32),
    )


TABLE = table(SCENES)
# Near layers slide further than far ones when the camera moves; the sky least.
PARALLAX = (0.5, 0.8, 1.1)
SKY_PARALLAX = 0.3
_LAYER_SHIFT = (0.0, 1.7, 3.9)


class SceneMasks(NamedTuple):
    """What a scene is painted from; planes [H, W] unless said otherwise.

    lower, upper: [H, 1], how far up each half of the sky; disc, blobs, marks: cover in [0, 1];
    edges: [3, W], heights of the edges of the layers; ground: cover of all the layers.
    """

    lower: jax.Array
    upper: jax.Array
    disc: jax.Array
    blobs: jax.Array
    marks: jax.Array
    edges: jax.Array
    ground: jax.Array


def masks(world, time, x, y, pixel, table: Table = TABLE) -> SceneMasks:
    """Masks of the scene of `world` (scalars) at `time` (scalar in [0, 1]).

    x: [1, W], y: [H, 1], coordinates of pixel centres; pixel: side of a pixel; table: the scenes.
    """
    scene, horizon = world.scene, world.horizon
    camera = world.scroll + world.pan * (time - 0.5)
    up = jnp.clip((y - horizon) / (1.0 - horizon), 0.0, 1.0)
    shifted = x + camera * SKY_PARALLAX
    edges = _edges(world, camera, time, x, table)
    ground = jnp.clip((jnp.max(edges, axis=0, keepdims=True) - y) / pixel + 0.5, 0.0, 1.0)
    return SceneMasks(
        lower=jnp.clip(up * 2, 0.0, 1.0),
        upper=jnp.clip(up * 2 - 1, 0.0, 1.0),
        disc=_disc(table, scene, shifted, y - horizon, pixel),
        blobs=_sum_spots(jnp.asarray(table.blobs)[scene], shifted, y),
        marks=ground * _sum_spots(jnp.asarray(table.marks)[scene], x + camera * PARALLAX[2], y),
        edges=edges,
        ground=ground,
    )


def _edges(world, camera, time, x, table):
    """Heights of the layers' edges, [3, W]."""
    base, height, rate, peaked, flow = jnp.moveaxis(jnp.asarray(table.shapes)[world.scene], 1, 0)
    start = rate * (camera * jnp.array(PARALLAX) + flow * time) + jnp.array(_LAYER_SHIFT)
    wave = jnp.sin(rate[:, None] * x + start[:, None])
    peaks = jnp.arcsin(0.98 * wave) * (2 / jnp.pi)
    wave = wave + peaked[:, None] * (peaks - wave)
    return world.horizon + base[:, None] + height[:, None] * wave


def _disc(table, scene, x, y, pixel):
    """Cover of the sun or moon and its glow."""
    disc, glow = jnp.asarray(table.disc)[scene], jnp.asarray(table.glow)[scene]
    dx, dy = x - disc[0], y - disc[1]
    halo = glow[0] * jnp.exp(-jnp.square(dx / glow[1])) * jnp.exp(-jnp.square(dy / glow[1]))
    # Near the rim, (r^2 - d^2) / 2r is the distance to the circle.
    inside = (disc[2] ** 2 - dx * dx - dy * dy) / (2 * disc[2])
    return jnp.maximum(jnp.clip(inside / pixel + 0.5, 0.0, 1.0), halo)


class Palette(NamedTuple):
    """Colours of one scene: [3] each (channels), of layers [3, 3] (channels, layers)."""

    top: jax.Array
    middle: jax.Array
    low: jax.Array
    disc: jax.Array
    mark: jax.Array
    edges: jax.Array
    deeps: jax.Array


def palette(world, table: Table = TABLE) -> Palette:
    """The colours of the scene of `world`, its tone shifted by `world.hue`; channels first."""
    scene = world.scene
    names = ("top", "middle", "low", "disc_colour", "mark_colour")
    top, middle, low, disc, mark = (jnp.asarray(table.colours[n])[scene] for n in names)
    warm = jnp.array([0.04, 0.0, -0.04]) * world.hue
    tint = 1.0 + 0.05 * world.hue
    edges, deeps = jnp.asarray(table.edges)[scene] * tint, jnp.asarray(table.deeps)[scene] * tint
    return Palette(top + warm, middle + warm, low + warm, disc, mark, edges.T, deeps.T)


def paint(colours: Palette, masks: SceneMasks, y, pixel):
    """One channel [H, W] in [0, 1] of the scene; colours: one channel of `palette`."""
    plane = colours.low + masks.lower * (colours.middle - colours.low)
    plane = plane + masks.upper * (colours.top - colours.middle)
    plane = plane + masks.disc * (colours.disc - plane)
    plane = plane + masks.blobs * (1.0 - plane)
    for i in range(3):
        below = masks.edges[i : i + 1] - y
        fill = colours.edges[i] + jnp.clip(below * 2.2, 0.0, 1.0) * (
            colours.deeps[i] - colours.edges[i]
        )
        plane = plane + jnp.clip(below / pixel + 0.5, 0.0, 1.0) * (fill - plane)
    return plane + masks.marks * (colours.mark - plane)


def _sum_spots(spots, x, y):
    """Sum of soft spots [K, 5], each a product of a curve along x and one along y, at most 1."""
    across = jnp.exp(-jnp.square((x - spots[:, 0:1]) / spots[:, 2:3]))  # [K, W]
    down = spots.T[4:] * jnp.exp(-jnp.square((y - spots.T[1:2]) / spots.T[3:4]))  # [H, K]
    return jnp.minimum(down @ across, 1.0)
