"""Draws worlds: pure functions of a World, a time and a size, for jit and vmap on any backend.

Edges are antialiased in closed form (the signed distance over the width of a pixel), so one
world looks the same at every resolution.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from mv2_jax.toybox import scenes, things
from mv2_jax.toybox.world import Pose, World, pose

_CPU_PIXELS = 2**17


def grid(size):
    """Coordinates of pixel centres, x [1, W] and y [H, 1], and the side of a pixel."""
    height, width = size
    pixel = 2.0 / height
    y = (0.5 * (height - 1) - jnp.arange(height, dtype=jnp.float32)) * pixel
    x = (jnp.arange(width, dtype=jnp.float32) - 0.5 * (width - 1)) * pixel
    return x[None, :], y[:, None], pixel


def placed(now: Pose, size) -> Pose:
    """A pose with its centre and radius in half frame heights, as they are drawn at `size`."""
    aspect = size[1] / size[0]
    return now._replace(x=now.x * aspect, radius=now.radius * min(1.0, aspect))


def _own_plane(now: Pose, x, y):
    """Pixel coordinates in the plane [H, W] of a thing that is `placed`; half heights per unit."""
    cos, sin = jnp.cos(now.angle), jnp.sin(now.angle)
    dx = (x - now.x) / (now.radius * now.stretch_x)
    dy = (y - now.y) / (now.radius * now.stretch_y)
    return (dx * cos + dy * sin, dy * cos - dx * sin), now.radius * now.stretch_y


def _frame(world: World, time, size):
    """One frame, [H, W, 3] in [-1, 1]."""
    x, y, pixel = grid(size)
    scene = scenes.masks(world, time, x, y, pixel)
    thing, cover, dark = thing_masks(world, placed(pose(world, time), size), scene.ground, size)

    def channel(palettes):
        of_scene, of_thing = palettes
        behind = scenes.paint(of_scene, scene, y, pixel) * dark
        both = behind + cover * (things.paint(of_thing, thing) - behind)
        return jnp.clip(2.0 * both - 1.0, -1.0, 1.0)

    # A loop over channels, because XLA fuses across everything but a loop: written straight on,
    # each pixel would compute the masks anew for each channel, without vector instructions.
    planes = jax.lax.map(channel, (scenes.palette(world), things.palette(world)))
    return jnp.moveaxis(planes, 0, -1)


def thing_masks(world: World, now: Pose, ground, size):
    """What a thing that is `placed` is drawn from: its masks, its cover in [0, 1] and what it
    leaves of the scene's light, planes [H, W]; `ground` [H, W] is the scene's."""
    x, y, pixel = grid(size)
    (px, py), unit = _own_plane(now, x, y)
    thing = things.masks(world, px, py, _light(world, now.angle))
    far = thing.far * unit
    cover = jnp.clip(0.5 - far / (1.3 * pixel), 0.0, 1.0)
    return thing, cover, _shadow(world, now, x, y, ground, far)


def scene_picture(world: World, time, size):
    """The scene alone, [H, W, 3] in [0, 1], and its ground [H, W]."""
    x, y, pixel = grid(size)
    scene = scenes.masks(world, time, x, y, pixel)
    paint = partial(scenes.paint, masks=scene, y=y, pixel=pixel)
    return jnp.moveaxis(jax.lax.map(paint, scenes.palette(world)), 0, -1), scene.ground


def _light(world, angle):
    """The direction towards the light in the thing's own plane, which is turned by `angle`."""
    norm = jnp.sqrt(world.light**2 + 1.0)
    x, y = world.light / norm, 1.0 / norm
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _shadow(world, now, x, y, ground, far):
    """What is left of the scene's light, [H, W]: a soft ellipse on the floor, and a dark seam
    around the thing that keeps it apart from a scene of its own colour."""
    height = jnp.clip((now.y - now.radius - now.floor) / 0.9, 0.0, 1.0)
    across = now.radius * (1.1 - 0.3 * height)
    dx = (x - now.x + 0.25 * world.light * now.radius) / across
    dy = (y - now.floor) / (0.26 * across)
    pool = jnp.clip(1.0 - dx * dx - dy * dy, 0.0, 1.0)
    pool = (0.5 - 0.25 * height) * pool * pool * ground
    seam = jnp.clip(1.0 - jnp.maximum(far, 0.0) / 0.075, 0.0, 1.0)
    return (1.0 - pool) * (1.0 - 0.38 * seam * seam)


@partial(jax.jit, static_argnums=2)
def render(world: World, times, size: tuple[int, int]):
    """Draws a clip.

    Args:
        world: one World (scalars); for a batch of them use `render_batch`.
        times: [T] in [0, 1].
        size: (height, width) in pixels, static.

    Returns:
        [T, H, W, 3] float32 in [-1, 1].
    """
    return render_batch(jax.tree.map(lambda leaf: leaf[None], world), times, size)[0]


@partial(jax.jit, static_argnums=2)
def render_batch(worlds: World, times, size: tuple[int, int]):
    """`render` over a batch: worlds [B], times [T] -> [B, T, H, W, 3]."""
    count, frames = worlds.thing.shape[0], times.shape[0]
    each = jax.tree.map(lambda leaf: jnp.repeat(leaf, frames), worlds)
    every = jnp.tile(times, count)
    # A few frames at a time on a CPU, so that the masks stay in its cache (twice as fast).
    chunk = max(1, _CPU_PIXELS // (size[0] * size[1]))
    if jax.default_backend() == "cpu" and chunk < count * frames:
        out = jax.lax.map(lambda a: _frame(a[0], a[1], size), (each, every), batch_size=chunk)
    else:
        out = jax.vmap(lambda world, time: _frame(world, time, size))(each, every)
    return out.reshape(count, frames, *size, 3)


@partial(jax.jit, static_argnums=2)
def render_mask(world: World, times, size: tuple[int, int]):
    """How far each pixel belongs to the thing: [T, H, W] float32 in [0, 1]."""

    def frame(time):
        x, y, pixel = grid(size)
        (px, py), unit = _own_plane(placed(pose(world, time), size), x, y)
        far = things.distance(world.thing, px, py) * unit
        return jnp.clip(0.5 - far / (1.3 * pixel), 0.0, 1.0)

    return jax.vmap(frame)(times)


def frame_times(frames: int):
    """[frames] times from 0 to 1, evenly; a single frame is the clip's first."""
    return jnp.linspace(0.0, 1.0, frames) if frames > 1 else jnp.zeros((1,))
