"""What there is in the storybox: a world drawn at random, and how its things move.

Coordinates as in the toybox: y points up and runs over [-1, 1] from the bottom to the top of the
frame, x over [-aspect, aspect]; lengths are in half frame heights. Time runs over [0, 1] from the
first frame of a clip to its last.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.storybox import atlas
from mv2_jax.storybox.vocabulary import KINDS, MOTIONS, NOTHING, RELATIONS, THINGS
from mv2_jax.toybox.scenes import PARALLAX

HOPPING, FLYING, DRIVING, SWIMMING, ROLLING, WOBBLING, GROWING, FALLING, ZOOMING, PANNING = range(
    len(MOTIONS)
)
LEFT_OF, RIGHT_OF, BEHIND, ABOVE = range(len(RELATIONS))
STILL, ASIDE_HOPPING, ASIDE_WOBBLING, ASIDE_RISING = range(4)
ZOOM = 0.8  # octaves that the camera comes nearer in a clip
PAN = 0.9  # how far it pans, half frame heights
# Drawings look to the left, but for these.
_LOOKS_RIGHT = np.array([name in ("rocket", "plane") for name in (*THINGS, "nothing")])


class World(NamedTuple):
    """One world; every field is a scalar (or a batch of them under vmap).

    thing ... aside: int32 indices into the classes of `KINDS`; `second` is NOTHING in a world of
        one thing.
    radius: half the first thing's longer side, half frame heights; size: the second's, as a share
        of it.
    x: the middle of the first thing's way, as a fraction of the half frame's width; floor: the
        height that it stands on; travel: 0.8 to 1.2, how far and how wide it moves.
    heading: -1 (left) or 1 (right), where the first thing looks and goes; other: the same of the
        second, which goes along but may look elsewhere.
    side: -1 or 1, on which side what is behind looks out.
    light: where light comes from, as in the toybox; horizon, hue, scroll, pan: the scene's;
    phase: 0 to 1, of rain and snow.
    """

    thing: jax.Array
    style: jax.Array
    scene: jax.Array
    hour: jax.Array
    weather: jax.Array
    motion: jax.Array
    second: jax.Array
    relation: jax.Array
    aside: jax.Array
    radius: jax.Array
    size: jax.Array
    x: jax.Array
    floor: jax.Array
    travel: jax.Array
    heading: jax.Array
    other: jax.Array
    side: jax.Array
    light: jax.Array
    horizon: jax.Array
    hue: jax.Array
    scroll: jax.Array
    pan: jax.Array
    phase: jax.Array


WORDS = len(KINDS)
"""How many of a world's fields, the first ones, are its words."""


class Pose(NamedTuple):
    """Where things are at one time, each field [2]: centre, radius (half frame heights), angle
    (radians, anticlockwise), stretch along x and y, whether the drawing is mirrored (-1 or 1), and
    the height of the floor beneath."""

    x: jax.Array
    y: jax.Array
    radius: jax.Array
    angle: jax.Array
    stretch_x: jax.Array
    stretch_y: jax.Array
    mirror: jax.Array
    floor: jax.Array


def sample_world(key, words=None) -> World:
    """Draws a world from `key`; `words` [WORDS] (int or traced) fixes its words.

    The draws of the other fields do not depend on the words: two worlds of one key that differ in
    one word look alike in everything else.
    """
    chance = jax.random.uniform(key, (WORDS + 14,))

    def uniform(i, low, high):
        return low + chance[WORDS + i] * (high - low)

    def sign(i):
        return jnp.where(chance[WORDS + i] < 0.5, -1.0, 1.0)

    if words is None:
        sizes = [len(names) for names in KINDS.values()]
        words = [(chance[i] * size).astype(jnp.int32) for i, size in enumerate(sizes)]
    words = canonical(jnp.stack([jnp.asarray(word, jnp.int32) for word in words]))
    pans = words[5] == PANNING
    return World(
        *words,
        radius=uniform(0, 0.36, 0.46) * jnp.where(words[6] == NOTHING, 1.0, 0.68),
        size=uniform(1, 0.85, 1.1),
        x=uniform(2, -0.2, 0.2),
        floor=uniform(3, -0.78, -0.62),
        travel=uniform(4, 0.8, 1.2),
        heading=sign(5),
        other=sign(6),
        side=sign(7),
        light=sign(8) * uniform(9, 0.3, 0.7),
        horizon=uniform(10, -0.3, -0.08),
        hue=uniform(11, -1.0, 1.0),
        scroll=uniform(12, -0.35, 0.35),
        pan=jnp.where(pans, jnp.where(chance[WORDS + 6] < 0.5, -PAN, PAN), 0.0),
        phase=uniform(13, 0.0, 1.0),
    )


def canonical(words):
    """Words [WORDS] with relation and aside the first ones where there is no second thing."""
    alone = words[6] == NOTHING
    return words.at[7:9].set(jnp.where(alone, 0, words[7:9]))


def words_of(world: World):
    """[..., WORDS] int32, a world's words."""
    return jnp.stack(world[:WORDS], axis=-1)


def extent(world: World, second: bool = False):
    """The lowest and highest place of a thing's drawing, in radii."""
    held = atlas.load()
    row = world.style * atlas.COUNT + jnp.minimum(
        world.second if second else world.thing, atlas.COUNT - 1
    )
    return jnp.asarray(held.foot)[row], jnp.asarray(held.top)[row]


def hop(time, hops: float):
    """Height (0 to 1) and squash (0 to 1) of so many hops from the ground."""
    phase = jnp.mod(hops * time, 1.0) * 2 - 1  # -1 and 1: on the ground; 0: at the top
    squash = jnp.clip((jnp.abs(phase) - 0.7) / 0.3, 0.0, 1.0)
    return 1 - phase**2, squash**2


def poses(world: World, time, aspect: float = 1.0) -> Pose:
    """Both things at `time` (scalar in [0, 1]) in a frame so much wider than high; the camera's
    zoom is not in them (`view`)."""
    first = _first(world, time, aspect)
    return jax.tree.map(lambda *pair: jnp.stack(pair), first, _second(world, time, first, aspect))


def _first(world: World, time, aspect) -> Pose:
    """The first thing's pose. Each motion changes its own numbers only."""
    motion, swing, heading = world.motion, time - 0.5, world.heading
    foot, _ = extent(world)
    crowd, unit = world.second != NOTHING, min(1.0, aspect)
    radius, turns = world.radius * unit, 2 * jnp.pi

    def where(which, value, otherwise=0.0):
        return jnp.where(motion == which, value, otherwise)

    middle = world.x * jnp.where(crowd, 0.3, 1.0) + jnp.where(crowd, _shift(world), 0.0)
    along = where(FLYING, 1.2) + where(DRIVING, 0.9) + where(SWIMMING, 0.8) + where(ROLLING, 1.0)
    along = along * world.travel * jnp.where(crowd, 0.45, 0.8)
    middle = jnp.where(along > 0, middle - world.x * 0.4, middle)
    x = (middle + heading * along * swing) * aspect

    # The wave of a swimmer and of a wobble.
    wave = 1.5 * turns * time
    height, squash = hop(time, 2.5)
    squash = where(HOPPING, squash)
    radius = radius * where(GROWING, 2.0 ** (0.9 * swing), 1.0)
    stretch_y = 1.0 - 0.18 * squash
    ground = world.floor - foot * radius * stretch_y
    high = jnp.where(crowd & (world.relation == ABOVE), 0.12, 0.5) * world.travel
    y = ground + where(HOPPING, 0.55 * high * height)
    y = y + where(FLYING, 0.2 + 1.2 * high - 0.25 * (ground + 0.5) + 0.06 * jnp.sin(wave))
    y = y + where(DRIVING, 0.012 * jnp.abs(jnp.sin(2 * wave)))
    y = y + where(SWIMMING, 0.14 + 0.08 * jnp.sin(wave))
    y = y + where(FALLING, jnp.where(high < 0.2, 0.35, 1.5) * world.travel * (0.9 - time**2) / 1.2)

    angle = where(FLYING, 0.12 * heading * jnp.cos(wave)) + where(DRIVING, 0.03 * jnp.sin(2 * wave))
    angle = angle + where(SWIMMING, 0.22 * heading * jnp.cos(wave))
    angle = angle - where(ROLLING, heading * along * aspect * swing / (0.8 * radius))
    lean = where(WOBBLING, 0.38 * jnp.sin(2 * turns * time))
    # A wobble turns about the foot.
    arm = -foot * radius
    x, y = x - arm * jnp.sin(lean), y - arm * (1 - jnp.cos(lean))
    looks = jnp.where(jnp.asarray(_LOOKS_RIGHT)[world.thing], heading, -heading)
    return Pose(
        x - _pan(world, time),
        y,
        radius,
        angle + lean,
        1.0 + 0.12 * squash,
        stretch_y,
        looks,
        world.floor + 0 * y,
    )


def _shift(world: World):
    """Where the first of two things stands, so that both are in the frame."""
    to_left = (world.relation == LEFT_OF) * 1.0
    to_right = (world.relation == RIGHT_OF) * 1.0
    # The second thing is to the left of the first one, or to its right.
    return 0.42 * (to_left - to_right)


def _pan(world: World, time):
    return PARALLAX[2] * world.pan * (time - 0.5)


def _second(world: World, time, first: Pose, aspect) -> Pose:
    """The second thing's pose, by its relation to the first one, with which it goes along."""
    foot, _ = extent(world, second=True)
    unit, relation = min(1.0, aspect), world.relation
    radius = world.radius * world.size * unit
    aside, turns = world.aside, 2 * jnp.pi
    # Where the first one is at rest: what it does in its place the second does not.
    rest = _first(world._replace(motion=_travels(world)), time, aspect)
    apart = jnp.where(relation == LEFT_OF, -0.84, jnp.where(relation == RIGHT_OF, 0.84, 0.0))
    apart = jnp.where(relation == BEHIND, 0.26 * world.side, apart)
    x = rest.x + apart * aspect

    deeper = jnp.where(relation == BEHIND, 0.2, 0.0)
    floor = world.floor + deeper
    height, squash = hop(time, 2.0)
    squash = jnp.where(aside == ASIDE_HOPPING, squash, 0.0)
    stretch_y = 1.0 - 0.18 * squash
    y = floor - foot * radius * stretch_y
    lift = jnp.where(
        world.motion == FLYING, rest.y - (world.floor - extent(world)[0] * rest.radius), 0
    )
    y = y + jnp.where(relation == ABOVE, 0.0, lift)
    y = jnp.where(relation == ABOVE, 0.56 + 0.1 * (world.travel - 1), y)
    y = y + jnp.where(aside == ASIDE_HOPPING, 0.2 * height, 0.0)
    rise = jnp.where(relation == ABOVE, 0.24 * (time - 0.7), 0.7 * time)
    y = y + jnp.where(aside == ASIDE_RISING, rise, 0.0)
    lean = jnp.where(aside == ASIDE_WOBBLING, 0.34 * jnp.sin(2 * turns * time), 0.0)
    arm = -foot * radius
    x, y = x - arm * jnp.sin(lean), y - arm * (1 - jnp.cos(lean))
    looks = jnp.asarray(_LOOKS_RIGHT)[world.second]
    mirror = jnp.where(looks, world.other, -world.other)
    ones = jnp.ones_like(y)
    return Pose(x, y, radius * ones, lean, 1.0 + 0.12 * squash, stretch_y, mirror, floor * ones)


def _travels(world: World):
    """The motion if it takes the second thing along, else panning's (which moves nothing)."""
    motion = world.motion
    goes = (motion == FLYING) | (motion == DRIVING) | (motion == SWIMMING) | (motion == ROLLING)
    return jnp.where(goes, motion, PANNING)


def view(world: World, time, aspect: float = 1.0):
    """What the camera is turned to, (x, y), and how much nearer it is (1: not)."""
    zooms = world.motion == ZOOMING
    near = jnp.where(zooms, 2.0 ** (ZOOM * time), 1.0)
    return world.x * 0.5 * aspect, world.floor + 0.5 * world.radius, near
