"""Draws worlds: pure functions of a World, a time and a size, for jit and vmap on any backend.

Back to front: the scene, what stands about in it, the shadows, the second thing, the first, the
weather. Drawings are sampled from the atlas; all else is in closed form, as in the toybox.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from mv2_jax.storybox import atlas, scenes
from mv2_jax.storybox.vocabulary import NOTHING, THINGS
from mv2_jax.storybox.world import Pose, World, poses, view
from mv2_jax.toybox import scenes as toybox
from mv2_jax.toybox.renderer import frame_times, grid

__all__ = ["frame_times", "render", "render_batch", "render_covers"]
_CPU_PIXELS = 2**16


def camera(world: World, time, size):
    """Coordinates of pixels as the camera sees them, x [1, W] and y [H, 1], and a pixel's side."""
    x, y, pixel = grid(size)
    to_x, to_y, near = view(world, time, size[1] / size[0])
    return to_x + (x - to_x) / near, to_y + (y - to_y) / near, pixel / near


def drawing(texels, now: Pose, x, y, pixel):
    """One thing in the frame, [H, W, 4] as `atlas.sample` gives it; `now`: scalars of its pose."""
    cos, sin = jnp.cos(now.angle), jnp.sin(now.angle)
    dx, dy = x - now.x, y - now.y
    u = (dx * cos + dy * sin) / (now.radius * now.stretch_x) * now.mirror
    v = (dy * cos - dx * sin) / (now.radius * now.stretch_y)
    return atlas.sample(texels, u, v, pixel / now.radius)


def one(now: Pose, which: int) -> Pose:
    """The first (0) or the second (1) of `poses`."""
    return jax.tree.map(lambda leaf: leaf[which], now)


def rows(world: World):
    """Rows of the atlas of the first and the second thing (the first's where there is none)."""
    second = jnp.where(world.second == NOTHING, world.thing, world.second)
    start = world.style * atlas.COUNT
    return start + world.thing, start + second


def shadow(world: World, now: Pose, x, y, ground):
    """What is left of the scene's light, [H, W]: a soft ellipse on the floor beneath one thing."""
    height = jnp.clip((now.y - now.radius - now.floor) / 0.9, 0.0, 1.0)
    across = now.radius * (0.95 - 0.3 * height)
    dx = (x - now.x + 0.2 * world.light * now.radius) / across
    dy = (y - now.floor) / (0.22 * across)
    pool = jnp.clip(1.0 - dx * dx - dy * dy, 0.0, 1.0)
    return 1.0 - (0.5 - 0.25 * height) * pool * pool * ground


def backdrop(world: World, time, size, texels):
    """The scene with what stands in it, [H, W, 3] in [0, 1], and its ground [H, W]; `texels`: the
    atlas's."""
    x, y, pixel = camera(world, time, size)
    masks = scenes.masks(world, time, x, y, pixel)
    paint = partial(toybox.paint, masks=masks, y=y, pixel=pixel)
    plain = jnp.moveaxis(jax.lax.map(paint, scenes.palette(world)), 0, -1)
    held = atlas.load()
    row = world.style * atlas.COUNT + len(THINGS) + jnp.asarray(scenes.PROP)[world.scene]
    found = scenes.props(world, time, x, y, texels[row], jnp.asarray(held.foot)[row], pixel)
    return over(plain, shaded(world, found)), masks.ground


def shaded(world: World, found):
    """A sampled drawing in the light of its world's hour."""
    return jnp.concatenate([scenes.shade(world, found[..., :3]), found[..., 3:]], axis=-1)


def over(picture, found):
    """A picture [H, W, 3] with a sampled drawing [H, W, 4] laid over it."""
    return picture * (1.0 - found[..., 3:]) + found[..., :3]


def compose(world: World, time, now: Pose, plain, ground, size, texels):
    """A backdrop with things at given poses and the weather over all: the picture [H, W, 3] in
    [0, 1], and each thing's drawing [2, H, W, 4]."""
    things = drawings(world, time, now, size, texels)
    light = shadows(world, time, now, ground, size)
    picture = over(over(plain * light[..., None], things[1]), things[0])
    cover, bright = scenes.weather(world, time, *grid(size)[:2])
    picture = picture + cover[..., None] * (bright - picture)
    return jnp.clip(picture, 0.0, 1.0), things


def drawings(world: World, time, now: Pose, size, texels):
    """Both things at given poses, [2, H, W, 4] as `atlas.sample` gives them."""
    x, y, pixel = camera(world, time, size)
    pair = world.second != NOTHING
    # A loop, into which XLA fuses nothing: written straight on, each use of a drawing's pixels
    # would look them up anew.
    things = jax.lax.map(
        lambda pair: shaded(world, drawing(pair[0], pair[1], x, y, pixel)),
        (texels[jnp.stack(rows(world))], now),
    )
    return things * jnp.stack([jnp.ones(()), pair * 1.0])[:, None, None, None]


def shadows(world: World, time, now: Pose, ground, size):
    """What both things' shadows leave of the scene's light, [H, W]."""
    x, y, _ = camera(world, time, size)
    first, second = (shadow(world, one(now, i), x, y, ground) for i in (0, 1))
    return first * jnp.where(world.second != NOTHING, second, 1.0)


def _frame(world: World, time, size, texels):
    """One frame, [H, W, 3] in [-1, 1]."""
    plain, ground = backdrop(world, time, size, texels)
    now = poses(world, time, size[1] / size[0])
    return 2.0 * compose(world, time, now, plain, ground, size, texels)[0] - 1.0


def render(world: World, times, size: tuple[int, int]):
    """Draws a clip of one world (scalars) at times [T]: [T, H, W, 3] float32 in [-1, 1]."""
    return render_batch(jax.tree.map(lambda leaf: leaf[None], world), times, size)[0]


def render_batch(worlds: World, times, size: tuple[int, int]):
    """Clips of worlds [B] at times [T] in [0, 1], `size` (height, width) in pixels, static.

    Returns:
        [B, T, H, W, 3] float32 in [-1, 1].
    """
    return _clips(worlds, times, atlas.texels(), size)


@partial(jax.jit, static_argnums=3)
def _clips(worlds, times, texels, size):
    count, frames = worlds.thing.shape[0], times.shape[0]
    each = jax.tree.map(lambda leaf: jnp.repeat(leaf, frames), worlds)
    every = jnp.tile(times, count)
    chunk = max(1, _CPU_PIXELS // (size[0] * size[1]))
    if jax.default_backend() == "cpu" and chunk < count * frames:
        out = jax.lax.map(
            lambda pair: _frame(pair[0], pair[1], size, texels), (each, every), batch_size=chunk
        )
    else:
        out = jax.vmap(lambda world, time: _frame(world, time, size, texels))(each, every)
    return out.reshape(count, frames, *size, 3)


def render_covers(world: World, times, size: tuple[int, int]):
    """How far pixels belong to each thing, whatever hides it: [T, 2, H, W] in [0, 1]."""
    return _covers(world, times, atlas.texels(), size)


@partial(jax.jit, static_argnums=3)
def _covers(world, times, texels, size):
    def frame(time):
        now = poses(world, time, size[1] / size[0])
        blank = jnp.zeros((*size, 3))
        return compose(world, time, now, blank, blank[..., 0], size, texels)[1][..., 3]

    return jax.vmap(frame)(times)
