"""The six things: signed distances, shading and patterns, all from closed forms.

A thing lives in its own plane, inside the unit circle. Light is computed from a made-up height:
the surface slopes outwards near the edge and is flat inside, so the slope towards the light is
the distance's derivative along the light, which one forward-mode product gives. The two solids
with flat faces (cube, pyramid) are drawn as seen from a little above, each face evenly lit.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BALL, CUBE, STAR, HEART, RING, PYRAMID = range(6)

# sRGB in [0, 1]: the colour itself, and the tone of the same colour that patterns are made of.
_BASE = np.array(
    [
        [0.92, 0.06, 0.09],  # red
        [1.00, 0.48, 0.00],  # orange
        [1.00, 0.90, 0.05],  # yellow
        [0.05, 0.66, 0.16],  # green
        [0.05, 0.28, 1.00],  # blue
        [0.52, 0.10, 0.82],  # purple
        [1.00, 0.44, 0.74],  # pink
        [1.00, 1.00, 1.00],  # white
    ],
    np.float32,
)
_TONE = np.array(
    [
        [0.66, 0.00, 0.05],
        [1.00, 0.66, 0.22],
        [0.94, 0.74, 0.00],
        [0.30, 0.84, 0.34],
        [0.30, 0.54, 1.00],
        [0.70, 0.36, 0.96],
        [1.00, 0.66, 0.86],
        [0.80, 0.80, 0.83],
    ],
    np.float32,
)
# How far from the edge the surface slopes. A full unit makes the ball a sphere.
_BEVEL = np.array([1.0, 0.2, 0.34, 0.42, 0.27, 0.2], np.float32)

_TIP = math.pi / 5  # a fifth of a half turn: from a star's tip to its valley
_NOTCH = 0.52  # radius of the star's valleys
_TUBE, _HOLE = 0.27, 0.73  # of the ring: radius of its tube, and of the circle it follows
_APEX, _LEFT, _FRONT, _RIGHT = (0.0, 0.95), (-0.95, -0.5), (0.22, -0.84), (0.95, -0.46)


def _length(x, y):
    return jnp.sqrt(x * x + y * y + 1e-12)


def _ball(x, y):
    return _length(x, y) - 0.96


def _ring(x, y):
    return jnp.abs(_length(x, y) - _HOLE) - _TUBE


def _cube(x, y):
    """A regular hexagon standing on its point: a cube seen along its diagonal."""
    x, y = jnp.abs(x), jnp.abs(y)
    return jnp.maximum(x, 0.5 * x + math.sqrt(0.75) * y) - 0.84


def _star(x, y):
    """Folds the plane onto the wedge between a tip and a valley, where one edge is left."""
    nx, ny = math.cos(_TIP), -math.sin(_TIP)
    for _ in range(2):
        x = jnp.abs(x)
        beyond = 2 * jnp.maximum(x * nx + y * ny, 0.0)
        x, y = x - beyond * nx, y - beyond * ny
    x = jnp.abs(x)
    tip = 0.9
    ex, ey = _NOTCH * tip * math.sin(_TIP), _NOTCH * tip * math.cos(_TIP) - tip
    y = y - tip
    along = jnp.clip((x * ex + y * ey) / (ex * ex + ey * ey), 0.0, 1.0)
    side = jnp.sign(-x * ey + y * ex)
    return side * _length(x - along * ex, y - along * ey) - 0.08


def _heart(x, y):
    """A square standing on its corner, with half circles on its two upper sides."""
    scale = 0.62
    x, y = jnp.abs(x) * scale, (y + 0.9) * scale
    circle = _length(x - 0.25, y - 0.75) - math.sqrt(0.125)
    along = 0.5 * jnp.maximum(x + y, 0.0)
    edge = jnp.sign(x - y) * jnp.minimum(_length(x - along, y - along), _length(x, y - 1.0))
    return jnp.where(x + y > 1.0, circle, edge) / scale - 0.03


def _line(x, y, start, end):
    """Signed distance to the line through two points, positive on its right-hand side."""
    ex, ey = end[0] - start[0], end[1] - start[1]
    size = math.hypot(ex, ey)
    return ((x - start[0]) * ey - (y - start[1]) * ex) / size


def _pyramid(x, y):
    corners = (_APEX, _LEFT, _FRONT, _RIGHT, _APEX)
    distance = _line(x, y, corners[0], corners[1])
    for start, end in itertools.pairwise(corners[1:]):
        distance = jnp.maximum(distance, _line(x, y, start, end))
    return distance


_DISTANCES = (_ball, _cube, _star, _heart, _ring, _pyramid)


def pick(index, values):
    """The value at a traced `index`, by selection: every value is evaluated (they are cheap)."""
    out = values[0]
    for i, value in enumerate(values[1:], 1):
        out = jnp.where(index == i, value, out)
    return out


def distance(thing, x, y):
    """Signed distance to the outline of `thing` (int32 scalar), negative inside. x, y: [H, W]."""
    return pick(thing, [f(x, y) for f in _DISTANCES])


def _faces(thing, x, y, light):
    """Even light of the faces of cube and pyramid, and coordinates on them for the pattern."""
    lx, ly = light
    sharp = 30.0

    def step(v):
        return jnp.clip(v * sharp + 0.5, 0.0, 1.0)

    def lit(nx, ny):
        return 0.88 + 0.24 * (nx * lx + ny * ly)

    slope = math.sqrt(1 / 3)
    upper, right = step(y - jnp.abs(x) * slope), step(x)
    sides = right * lit(0.87, -0.5) + (1 - right) * lit(-0.87, -0.5)
    cube = upper * (lit(0.0, 1.0) + 0.04) + (1 - upper) * sides
    # Along the two edges of each face: its corners are at 0 and 1.
    u = x / 0.84
    v_top, v_side = y / 0.97 - u * 0.5, -y / 0.97 - jnp.abs(u) * 0.5
    cube_u = jnp.where(y > jnp.abs(x) * slope, y / 0.97 + u * 0.5, jnp.abs(u))
    cube_v = jnp.where(y > jnp.abs(x) * slope, v_top, 1 + v_side)

    ridge = step(_line(x, y, _FRONT, _APEX))
    pyramid = ridge * lit(0.9, 0.1) + (1 - ridge) * lit(-0.7, 0.3)
    pyramid_v = y + jnp.where(ridge > 0.5, -0.5, 0.3) * (x - 0.1)
    is_cube = thing == CUBE
    return (
        jnp.where(is_cube, cube, pyramid),
        jnp.where(is_cube, cube_u, x * 0.8 + 0.3),
        jnp.where(is_cube, cube_v, pyramid_v * 0.9 + 0.6),
    )


class ThingMasks(NamedTuple):
    """What a thing is painted from, planes [H, W]: signed distance to its outline, how much light
    falls on it (0.4 to 1.1), and how much of the second tone is there (0 to 1)."""

    far: jax.Array
    light: jax.Array
    tone: jax.Array


def masks(world, x, y, light) -> ThingMasks:
    """Masks of the thing of `world` (scalars), in its own plane.

    Args:
        x, y: [H, W] coordinates in the thing's plane (unit circle).
        light: the direction towards the light (x, y) in that plane, of length 1.
    """
    thing, (lx, ly) = world.thing, light
    ones = jnp.ones_like(x)
    far, towards = jax.jvp(lambda a, b: distance(thing, a, b), (x, y), (ones * lx, ones * ly))
    slope = jnp.clip(1.0 + far / jnp.asarray(_BEVEL)[thing], 0.0, 1.0)
    upright = jnp.sqrt(1.0 - slope * slope + 1e-6)
    # Light falls at 45 degrees.
    diffuse = jnp.maximum(0.72 * slope * towards + 0.7 * upright, 0.0)
    flat, face_u, face_v = _faces(thing, x, y, light)
    solid = is_solid(thing)
    lit = jnp.where(solid, flat + 0.1 * slope * towards, 0.46 + 0.62 * diffuse)
    tone = _pattern(thing, world.pattern, world.phase, x, y, (solid, face_u, face_v))
    return ThingMasks(far, lit, tone)


def is_solid(thing):
    """Whether a thing (int32) has flat faces."""
    return (thing == CUBE) | (thing == PYRAMID)


def palette(world):
    """What `paint` needs, with a leading axis of the three channels."""
    base, tone = jnp.asarray(_BASE)[world.colour], jnp.asarray(_TONE)[world.colour]
    gloss = jnp.where(is_solid(world.thing), 0.0, 0.75)
    return base, tone, jnp.broadcast_to(gloss, (3,))


def paint(palette, masks: ThingMasks):
    """One channel [H, W] in [0, 1] of the thing; palette: one channel of `palette`."""
    base, tone, gloss = palette
    shine = jnp.clip((masks.light - 0.88) / 0.2, 0.0, 1.0)
    shine = gloss * shine * shine * shine
    plane = (base + masks.tone * (tone - base)) * masks.light
    return jnp.clip(plane + shine * (1.0 - plane), 0.0, 1.0)


def _wave(turns):
    """Nearly cos(2 pi turns), from two parabolas: on CPUs many times faster than the cosine."""
    a = 0.25 - jnp.abs(turns - jnp.floor(turns + 0.5))
    return 16.0 * a * (0.5 - jnp.abs(a))


def _pattern(thing, pattern, phase, x, y, faces):
    """How much of the second tone, [H, W] in [0, 1]: a few wide stripes or big dots."""
    solid, face_u, face_v = faces
    r2 = x * x + y * y
    bulge = 0.8 + 0.2 * r2  # lines crowd towards the rim, as on a sphere
    u = phase + jnp.where(solid, face_u, x * bulge + 0.15)
    v = phase + jnp.where(solid, face_v, y * bulge + 0.08)
    wave_u, wave_v = _wave(u - 0.5), _wave(v - 0.5)
    stripes = jnp.where(solid, wave_v, _wave(0.8 * u + 0.3 * v))
    wave = jnp.where(pattern == 0, stripes, wave_u + wave_v - 0.75)
    # The ring wears three bands: cos of three times the angle, as a polynomial of its cosine.
    cosine = x * jax.lax.rsqrt(r2 + 1e-6)
    wave = jnp.where(thing == RING, cosine * (4 * cosine * cosine - 3), wave)
    return jnp.clip(0.5 + 2.2 * wave, 0.0, 1.0)
