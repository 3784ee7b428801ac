"""What there is in the toybox: a world drawn at random, and how its thing moves.

Coordinates: y points up and runs over [-1, 1] from the bottom to the top of the frame, x over
[-aspect, aspect]; lengths are in half frame heights. Time runs over [0, 1] from the first frame
of a clip to its last.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mv2_jax.toybox.vocabulary import MOTIONS, SIZES

LEFT, RIGHT, RISING, FALLING, BOUNCING, SPINNING, GROWING, SHRINKING = range(len(MOTIONS))


class World(NamedTuple):
    """One world; every field is a scalar (or a batch of them under vmap).

    thing, colour, scene, motion: int32 indices into the vocabulary's tuples.
    radius: of the thing at its normal size, in half frame heights (so also the diameter as a
        fraction of the frame's height).
    x, y: the middle of the thing's path, as fractions of the half frame's width and height.
    travel: length of its way, in the same fractions (2 would be the whole frame).
    tilt: its angle in the first frame, radians.
    pattern: 0 stripes, 1 dots (int32); phase: where the pattern begins, in turns.
    light: where light comes from, -1 (left) to 1 (right), never near 0.
    horizon: height of the horizon; hue: -1 to 1, a shift of the scene's tone.
    scroll: which part of the scene the camera sees; pan: how far it moves over the clip.
    """

    thing: jax.Array
    colour: jax.Array
    scene: jax.Array
    motion: jax.Array
    radius: jax.Array
    x: jax.Array
    y: jax.Array
    travel: jax.Array
    tilt: jax.Array
    pattern: jax.Array
    phase: jax.Array
    light: jax.Array
    horizon: jax.Array
    hue: jax.Array
    scroll: jax.Array
    pan: jax.Array


class Pose(NamedTuple):
    """Where the thing is at one time: centre (x as a fraction of the half width), radius, angle
    (radians, anticlockwise), stretch along x and y, and the height of the floor beneath it."""

    x: jax.Array
    y: jax.Array
    radius: jax.Array
    angle: jax.Array
    stretch_x: jax.Array
    stretch_y: jax.Array
    floor: jax.Array


def sample_world(key, thing=None, colour=None, scene=None, motion=None) -> World:
    """Draws a world from `key`; an index that is given (int or traced) fixes that choice.

    The draws of the other fields do not depend on which choices are fixed, so two worlds of one
    key that differ in one word look alike in everything else.
    """
    # One draw for all: each call of a random function is slow to compile.
    chance = jax.random.uniform(key, (16,))
    fixed = (thing, colour, scene, motion)
    words = [
        (chance[i] * size).astype(jnp.int32) if value is None else jnp.asarray(value, jnp.int32)
        for i, (value, size) in enumerate(zip(fixed, SIZES))
    ]

    def uniform(i, low, high):
        return low + chance[i] * (high - low)

    # One number serves as side and strength of the light.
    side = 2 * uniform(12, -1.0, 1.0)
    return World(
        *words,
        radius=uniform(5, 0.36, 0.5),
        x=uniform(6, -0.24, 0.24),
        y=uniform(7, -0.22, 0.14),
        travel=uniform(8, 0.74, 0.9),
        tilt=uniform(9, -0.22, 0.22),
        pattern=(chance[10] * 2).astype(jnp.int32),
        phase=uniform(11, -0.12, 0.12),
        light=jnp.where(side < 0, -0.5, 0.5) + 0.2 * side,
        horizon=uniform(13, -0.36, -0.1),
        hue=uniform(14, -1.0, 1.0),
        scroll=uniform(15, -0.35, 0.35),
        pan=uniform(4, -0.12, 0.12),
    )


def pose(world: World, time) -> Pose:
    """The thing's pose at `time` (scalar in [0, 1]). Each motion changes one thing only."""
    motion, swing = world.motion, time - 0.5
    zero, one = jnp.zeros_like(time), jnp.ones_like(time)
    along_x = jnp.where(motion == RIGHT, one, jnp.where(motion == LEFT, -one, zero))
    along_y = jnp.where(motion == RISING, one, jnp.where(motion == FALLING, -one, zero))
    # What moves keeps near the middle of the way, so that it stays inside the frame.
    x = world.x * jnp.where(along_x == 0, 1.0, 0.4) + along_x * world.travel * swing
    y = world.y * jnp.where(along_y == 0, 1.0, 0.5) + along_y * world.travel * swing

    bouncing = motion == BOUNCING
    height, squash = bounce(time, world.travel)
    y = jnp.where(bouncing, world.y * 0.4 - 0.36 + height, y)
    squash = jnp.where(bouncing, squash, 0.0)

    growth = jnp.where(motion == GROWING, one, jnp.where(motion == SHRINKING, -one, zero))
    resizes = growth != 0
    # Those that change size start from a narrower range, to be neither specks nor giants.
    radius = jnp.where(resizes, 0.28 + 0.3 * world.radius, world.radius) * 2.0 ** (growth * swing)
    turn = jnp.where(motion == SPINNING, (0.45 + 0.15 * world.travel) * time, 0.0)
    lowest = jnp.where(bouncing, world.y * 0.4 - 0.36, y + jnp.abs(along_y) * 0)
    lowest = jnp.where(along_y == 0, lowest, world.y * 0.5 - 0.5 * world.travel)
    largest = jnp.where(resizes, radius, world.radius)
    return Pose(
        x=x,
        y=y,
        radius=radius,
        angle=world.tilt + 2 * jnp.pi * turn,
        stretch_x=1.0 + 0.14 * squash,
        stretch_y=1.0 - 0.2 * squash,
        floor=lowest - 0.92 * largest,
    )


def bounce(time, travel):
    """Height above the lowest point, and how squashed (0 to 1), of two bounces from the top."""
    phase = jnp.mod(0.5 + 1.75 * time, 1.0) * 2 - 1  # -1 and 1: on the ground; 0: at the top
    squash = jnp.clip((jnp.abs(phase) - 0.72) / 0.28, 0.0, 1.0)
    return travel * 0.9 * (1 - phase**2), squash**2
