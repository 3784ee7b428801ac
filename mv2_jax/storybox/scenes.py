"""The eight scenes by day and by night, drawn as the toybox's are, and the weather over them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.storybox import atlas
from mv2_jax.storybox.vocabulary import PROPS
from mv2_jax.toybox import scenes
from mv2_jax.toybox import vocabulary as toybox
from mv2_jax.toybox.scenes import Layer, Scene

COUNT = 8
_MEADOW, _SEA, _DESERT, _SNOW = (
    scenes.SCENES[toybox.SCENES.index(name)] for name in ("meadow", "sea", "desert", "snow")
)
_NIGHT_SKY = scenes.SCENES[toybox.SCENES.index("night sky")]
_MOUNTAINS = _MEADOW._replace(
    top=(0.36, 0.56, 0.86),
    middle=(0.58, 0.74, 0.93),
    low=(0.90, 0.93, 0.95),
    blobs=scenes.CLOUDS[3:],
    marks=(),
    layers=(
        Layer(0.34, 0.26, 2.6, 1.0, 0.0, (0.86, 0.89, 0.95), (0.42, 0.47, 0.60)),
        Layer(0.04, 0.18, 2.1, 0.9, 0.0, (0.50, 0.55, 0.62), (0.40, 0.46, 0.50)),
        Layer(-0.30, 0.06, 1.2, 0.2, 0.0, (0.55, 0.66, 0.42), (0.36, 0.48, 0.30)),
    ),
)
_FOREST = _MEADOW._replace(
    top=(0.46, 0.70, 0.78),
    middle=(0.64, 0.82, 0.80),
    low=(0.86, 0.93, 0.82),
    blobs=(),
    marks=(),
    layers=(
        Layer(0.30, 0.12, 5.0, 1.0, 0.0, (0.36, 0.56, 0.44), (0.30, 0.50, 0.40)),
        Layer(0.04, 0.08, 3.4, 0.6, 0.0, (0.24, 0.45, 0.30), (0.22, 0.42, 0.24)),
        Layer(-0.26, 0.05, 1.2, 0.0, 0.0, (0.36, 0.54, 0.24), (0.22, 0.36, 0.16)),
    ),
)
_TOWN = _MEADOW._replace(
    top=(0.45, 0.66, 0.90),
    middle=(0.66, 0.80, 0.94),
    low=(0.92, 0.93, 0.93),
    blobs=scenes.CLOUDS[:3],
    marks=(),
    layers=(
        Layer(0.10, 0.10, 2.8, 0.3, 0.0, (0.66, 0.70, 0.78), (0.58, 0.62, 0.72)),
        Layer(-0.08, 0.02, 1.3, 0.0, 0.0, (0.62, 0.74, 0.48), (0.52, 0.66, 0.40)),
        Layer(-0.34, 0.00, 1.0, 0.0, 0.0, (0.60, 0.60, 0.62), (0.46, 0.46, 0.50)),
    ),
)
_BEACH = _SEA._replace(
    blobs=scenes.CLOUDS[3:],
    marks=(),
    layers=(
        Layer(0.0, 0.0, 1.0, 0.0, 0.0, (0.26, 0.64, 0.80), (0.16, 0.56, 0.74)),
        Layer(-0.14, 0.02, 5.0, 0.0, 0.15, (0.50, 0.84, 0.86), (0.40, 0.78, 0.82)),
        Layer(-0.28, 0.05, 1.3, 0.0, 0.0, (0.99, 0.91, 0.70), (0.88, 0.74, 0.50)),
    ),
)
_DAYS = (_MEADOW, _SEA, _DESERT, _SNOW, _MOUNTAINS, _FOREST, _TOWN, _BEACH)
# What stands in each, if anything, how far apart and how large.
_PROPS = ("deciduous-tree", "", "cactus", "evergreen-tree", "", "evergreen-tree", "house",
          "palm-tree")  # fmt: skip
PROP = np.array([PROPS.index(name) if name else -1 for name in _PROPS], np.int32)
PROP_RADIUS = np.array([0.17, 0.1, 0.12, 0.15, 0.1, 0.24, 0.2, 0.24], np.float32)
PROP_SPACING = np.array([1.1, 1.0, 1.3, 0.9, 1.0, 0.5, 0.7, 1.2], np.float32)
_DARK = np.array([0.26, 0.31, 0.50])  # of a colour of the land, by night
TINT = np.array([[1.0, 1.0, 1.0], [0.66, 0.70, 0.90]], np.float32)
"""[hours, 3], what is left of a thing's colours."""


def _night(day: Scene) -> Scene:
    """The same scene under moon and stars."""

    def dark(colour):
        return tuple(float(c) for c in np.array(colour) * _DARK)

    layers = tuple(
        layer._replace(edge=dark(layer.edge), deep=dark(layer.deep)) for layer in day.layers
    )
    sky = {name: getattr(_NIGHT_SKY, name) for name in ("top", "middle", "low", "blobs")}
    moon = {name: getattr(_NIGHT_SKY, name) for name in ("disc", "disc_colour", "glow")}
    return day._replace(**sky, **moon, layers=layers, mark_colour=dark(day.mark_colour))


TABLE = scenes.table([*_DAYS, *map(_night, _DAYS)])
CLEAR, RAIN, SNOWFALL, FOG = range(4)


def row(world):
    """The world with its scene's row in `TABLE` for its scene."""
    return world._replace(scene=world.scene + COUNT * world.hour)


def _scatter(number):
    """Evenly spread over [0, 1) and the same on every device, of whole numbers."""
    number = number * 0.618034
    return number - jnp.floor(number)


def _drops(x, y, fallen, columns, length, width):
    """Streaks or flakes falling in columns, [H, W] in [0, 1]."""
    column = jnp.floor(x * columns)
    across = jnp.abs(x * columns - column - 0.5 - 0.3 * (_scatter(column * 7 + 3) - 0.5))
    speed = 1.0 + 0.3 * _scatter(column * 3 + 1)
    way = y * 1.3 + fallen * speed + 7.0 * _scatter(column)
    cell = jnp.floor(way)
    down = jnp.abs(way - cell - 0.5) / 1.3
    thick = jnp.clip(1.2 - across / (columns * width), 0.0, 1.0)
    return thick * jnp.clip(1.2 - down / length, 0.0, 1.0)


def weather(world, time, x, y):
    """What the weather lays over a picture: its cover [H, W] and its brightness (scalar)."""
    fallen = world.phase * 5 + time
    rain = 0.55 * _drops(x + 0.12 * y, y, 2.6 * fallen, 7.0, 0.085, 0.011)
    sway = 0.04 * jnp.sin(5.0 * y + 6.0 * time)
    snow = jnp.maximum(
        _drops(x + sway, y, fallen, 4.0, 0.026, 0.026),
        _drops(x - sway + 0.13, y + 0.37, 0.8 * fallen, 5.0, 0.019, 0.019),
    )
    kind = world.weather
    cover = jnp.where(kind == RAIN, rain, jnp.where(kind == SNOWFALL, 0.95 * snow, 0.0))
    return jnp.where(kind == FOG, fog(world, x, y), cover), brightness(world)


def brightness(world):
    """Of rain, snowflakes and fog."""
    return 0.93 * (1.0 - 0.45 * world.hour)


def fog(world, x, y):
    """The cover of fog [H, W], thickest low above the ground."""
    low = jnp.clip((world.horizon + 0.65 - y) / 1.0, 0.0, 1.0)
    return 0.22 + 0.38 * low * jnp.clip((y - world.horizon + 0.9) / 0.8, 0.0, 1.0) + 0 * x


def grey(world):
    """How much of the sky's colour bad weather takes, 0 to 1."""
    return jnp.asarray([0.0, 0.5, 0.35, 0.3])[world.weather]


def palette(world):
    """The colours of a world's scene (`scenes.Palette`), greyer in bad weather."""
    colours = scenes.palette(row(world), TABLE)
    share = grey(world)

    def faded(colour):
        """Channels first."""
        mean = jnp.mean(colour, axis=0, keepdims=True) * 0.92
        return colour + share * (mean - colour)

    sky = {name: faded(getattr(colours, name)) for name in ("top", "middle", "low", "disc")}
    return colours._replace(**sky)


def masks(world, time, x, y, pixel) -> scenes.SceneMasks:
    """`toybox.scenes.masks` of a world's scene; bad weather hides most of sun, moon and stars."""
    found = scenes.masks(row(world), time, x, y, pixel, TABLE)
    shown = jnp.asarray([1.0, 0.25, 0.4, 0.4])[world.weather]
    return found._replace(disc=found.disc * shown, blobs=found.blobs * shown)


def props(world, time, x, y, texels, foot, pixel):
    """The row of drawings that stand in a scene, [H, W, 4] as `atlas.sample` gives them.

    texels, foot: of the scene's prop, one row of the atlas.
    """
    radius, spacing = (jnp.asarray(a)[world.scene] for a in (PROP_RADIUS, PROP_SPACING))
    camera = world.scroll + world.pan * (time - 0.5)
    place = (x + camera * scenes.PARALLAX[1]) / spacing
    cell = jnp.floor(place)
    size = radius * (0.8 + 0.4 * _scatter(cell * 5 + 2))
    off = (place - cell - 0.5) * spacing + (spacing - 2.4 * radius) * 0.5 * (
        _scatter(cell * 3 + 1) - 0.5
    )
    base = world.horizon - 0.17 - 0.06 * _scatter(cell * 2 + 1)
    middle = base - foot * size
    # A loop of one, see `renderer.compose`.
    found = jax.lax.map(
        lambda one: atlas.sample(one, off / size, (y - middle) / size, pixel / radius), texels[None]
    )[0]
    return found * (jnp.asarray(PROP)[world.scene] >= 0)


def shade(world, colours: jax.Array):
    """Colours [H, W, 3] of drawings in the world's hour."""
    return colours * jnp.asarray(TINT)[world.hour][None, None]
