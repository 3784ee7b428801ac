"""True renders damaged as generated videos are, for calibrating and testing what judges them.

Each sort takes true clips and spoils one thing: an outline, a face, a turn, sharpness. `TUNING` are
those that bounds may be chosen by; `HELD_OUT` are other transforms, with other numbers and seeds,
that only say how good the bounds are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.diffusion import keys as named
from mv2_jax.toybox.renderer import frame_times, placed, render_batch, render_mask
from mv2_jax.toybox.things import BALL, CUBE, PYRAMID, RING, STAR
from mv2_jax.toybox.world import GROWING, SHRINKING, SPINNING, World, pose, sample_world

_FAR = 40.0  # so far to the side, in half widths, a thing and its shadow are not seen


class Clips(NamedTuple):
    """True clips of worlds [B] at times [T]: video and the same without the thing [B, T, H, W, 3]
    in [0, 1], the thing's cover [B, T, H, W], and its place: x, y, radius, angle [B, T, 4]."""

    worlds: World
    times: np.ndarray
    video: np.ndarray
    empty: np.ndarray
    cover: np.ndarray
    place: np.ndarray

    @property
    def words(self) -> np.ndarray:
        return np.stack(self.worlds[:4], axis=-1)


@jax.jit
def _worlds(keys, fixed):
    return jax.vmap(lambda key, given: sample_world(key, **given))(keys, fixed)


def drawn(worlds: World, times, size) -> Clips:
    """Clips of these worlds."""
    cover, place = _where(worlds, times, size)
    empty = worlds._replace(x=jnp.full_like(worlds.x, _FAR))
    every = (times, _pixels(worlds, times, size), _pixels(empty, times, size), cover, place)
    return Clips(jax.device_get(worlds), *(np.asarray(a) for a in every))


@partial(jax.jit, static_argnums=2)
def _where(worlds: World, times, size):
    """The thing's cover [B, T, H, W] and its place [B, T, 4]."""

    def one(world, time):
        now = placed(pose(world, time), size)
        place = jnp.stack([now.x, now.y, now.radius, now.angle])
        return render_mask(world, time[None], size)[0], place

    return jax.vmap(lambda world: jax.vmap(lambda time: one(world, time))(times))(worlds)


def _pixels(worlds, times, size):
    return render_batch(worlds, times, size) * 0.5 + 0.5


def _size(c: Clips) -> tuple[int, int]:
    return c.video.shape[2:4]


def _again(c: Clips, times=None, **changed) -> np.ndarray:
    """The clips' video with other times or fields of their worlds."""
    times = c.times if times is None else times
    return np.asarray(_pixels(c.worlds._replace(**changed), jnp.asarray(times), _size(c)))


def _polar(c: Clips) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the thing's middle in its radii, and angle in its own frame, [B, T, H, W]."""
    height, width = _size(c)
    y = 1 - (np.arange(height) + 0.5) * 2 / height
    x = (np.arange(width) + 0.5 - width / 2) * 2 / height
    px, py, radius, angle = (c.place[..., i, None, None] for i in range(4))
    dx, dy = x - px, y[:, None] - py
    return np.hypot(dx, dy) / radius, np.arctan2(dy, dx) - angle


def _mix(a, b, share) -> np.ndarray:
    return a + share[..., None] * (b - a)


def _moved(c: Clips, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """The video with the thing's pixels taken from elsewhere (dx, dy in pixels), and beyond the
    bent thing the empty scene."""
    count, frames, height, width, _ = c.video.shape
    rows, columns = np.mgrid[:height, :width]
    whole = np.concatenate([c.video, c.cover[..., None]], axis=-1)
    at = np.clip(rows + dy, 0, height - 1), np.clip(columns + dx, 0, width - 1)
    low = [np.floor(a).astype(int) for a in at]
    part = [(a - b)[..., None] for a, b in zip(at, low)]
    b, t = np.arange(count)[:, None, None, None], np.arange(frames)[None, :, None, None]
    high = [np.minimum(low[0] + 1, height - 1), np.minimum(low[1] + 1, width - 1)]
    top = whole[b, t, low[0], low[1]] * (1 - part[1]) + whole[b, t, low[0], high[1]] * part[1]
    down = whole[b, t, high[0], low[1]] * (1 - part[1]) + whole[b, t, high[0], high[1]] * part[1]
    bent = top * (1 - part[0]) + down * part[0]
    return _mix(c.empty, bent[..., :3], bent[..., 3])


def _pixels_of_radius(c: Clips) -> np.ndarray:
    return c.place[:, :, 2, None, None] * _size(c)[0] / 2


def blurred(c: Clips, rng) -> np.ndarray:
    """A Gaussian's blur."""
    del rng
    reach = _size(c)[0] / 256 * 1.6
    tap = np.exp(-0.5 * (np.arange(-6, 7) / reach) ** 2)
    tap /= tap.sum()
    video = c.video
    for axis in (2, 3):
        edge = np.pad(video, [(6, 6) if a == axis else (0, 0) for a in range(5)], "edge")
        length = video.shape[axis]
        moved = (w * np.take(edge, range(i, i + length), axis) for i, w in enumerate(tap))
        video = sum(moved, start=np.zeros_like(video))
    return video


def coarse(c: Clips, rng) -> np.ndarray:
    """Halved in size and brought back twice: softness of another form than a Gaussian's."""
    del rng
    count, frames, height, width, _ = c.video.shape
    few = (count, frames, max(1, height * 2 // 5), max(1, width * 2 // 5), 3)
    down = jax.image.resize(jnp.asarray(c.video), few, "linear", antialias=True)
    return np.asarray(jax.image.resize(down, c.video.shape, "cubic"))


def melted(c: Clips, rng) -> np.ndarray:
    """Bent by a smooth random field, the same in all frames of a clip."""
    count = len(c.video)
    field = jnp.asarray(rng.normal(0, 0.14, (count, 2, 6, 6)), jnp.float32)
    field = np.asarray(jax.image.resize(field, (count, 2, *_size(c)), "cubic"))
    field = field[:, :, None] * _pixels_of_radius(c)[:, None]
    return _moved(c, field[:, 0], field[:, 1])


def wobbling(c: Clips, rng) -> np.ndarray:
    """An outline that goes in and out by waves about it, others in each frame."""
    far, angle = _polar(c)
    waves = rng.integers(2, 6, (*far.shape[:2], 1, 1))
    shift = rng.uniform(0, 2 * np.pi, waves.shape)
    bend = 0.11 * np.sin(waves * angle + shift) * np.minimum(far, 1.2) * _pixels_of_radius(c)
    here = angle + c.place[..., 3, None, None]
    return _moved(c, bend * np.cos(here), -bend * np.sin(here))


def bitten(c: Clips, rng) -> np.ndarray:
    """A round bite out of the rim, in one place of the thing."""
    return _hole(c, rng.uniform(0, 2 * np.pi, len(c.video)), 0.75, 0.36)


def dented(c: Clips, rng) -> np.ndarray:
    """A slice cut off straight, as far in as a third of the radius."""
    far, angle = _polar(c)
    side = rng.uniform(0, 2 * np.pi, (len(far), 1, 1, 1))
    return _mix(c.video, c.empty, _soft(far * np.cos(angle - side) - 0.45, c))


def _hole(c: Clips, angle, far: float, radius: float) -> np.ndarray:
    distance, around = _polar(c)
    turn = around - np.asarray(angle)[:, None, None, None]
    away = np.sqrt(np.maximum(distance**2 + far**2 - 2 * far * distance * np.cos(turn), 0))
    return _mix(c.video, c.empty, _soft(radius - away, c))


def _soft(inside, c: Clips) -> np.ndarray:
    """1 inside, over a pixel's width; `inside` is in the thing's radii."""
    return np.clip(0.5 + inside * _pixels_of_radius(c), 0, 1)


def armless(c: Clips, rng) -> np.ndarray:
    """A star without one of its arms."""
    tips = np.pi / 2 + 2 * np.pi / 5 * rng.integers(0, 5, len(c.video))
    return _wedge(c, tips, np.pi / 5, 0.5)


def torn(c: Clips, rng) -> np.ndarray:
    """A gap in a ring."""
    return _wedge(c, rng.uniform(0, 2 * np.pi, len(c.video)), 0.35, 0.0)


def _wedge(c: Clips, angle, half: float, least: float) -> np.ndarray:
    """Without what is within `half` radians of an angle and further out than `least`."""
    far, around = _polar(c)
    turn = np.angle(np.exp(1j * (around - np.asarray(angle)[:, None, None, None])))
    gone = np.minimum((half - np.abs(turn)) * far, far - least)
    return _mix(c.video, c.empty, _soft(gone, c))


def grown(c: Clips, rng) -> np.ndarray:
    """A lump of the thing's own colour on its rim."""
    angle = rng.uniform(0, 2 * np.pi, len(c.video))
    far, around = _polar(c)
    turn = around - angle[:, None, None, None]
    away = np.sqrt(np.maximum(far**2 + 0.9**2 - 1.8 * far * np.cos(turn), 0))
    return _mix(c.video, _mean_paint(c), _soft(0.4 - away, c))


def _mean_paint(c: Clips) -> np.ndarray:
    inside = (c.cover > 0.98)[..., None]
    mean = (c.video * inside).sum(axis=(2, 3), keepdims=True)
    return np.broadcast_to(
        mean / np.maximum(inside.sum(axis=(2, 3), keepdims=True), 1), c.video.shape
    )


def faceless(c: Clips, rng) -> np.ndarray:
    """A solid whose faces and pattern are gone: its outline alone is left."""
    del rng
    return _mix(c.video, _mean_paint(c), c.cover)


def lump(c: Clips, rng) -> np.ndarray:
    """A ball in a cube's place, with its light and shine."""
    del rng
    return _again(c, thing=np.full_like(c.worlds.thing, BALL))


def still(c: Clips, rng) -> np.ndarray:
    """The first frame, all along."""
    del rng
    return np.repeat(c.video[:, :1], len(c.times), axis=1)


def frozen(c: Clips, rng) -> np.ndarray:
    """A spin that stands still while the scene goes on."""
    del rng
    return _again(c, motion=np.zeros_like(c.worlds.motion), travel=np.zeros_like(c.worlds.travel))


def swelling(c: Clips, rng) -> np.ndarray:
    """A spin that grows by half on its way."""
    del rng
    frames = [
        _again(c, [t], radius=c.worlds.radius * np.float32(0.8 + 0.5 * t))[:, 0] for t in c.times
    ]
    return np.stack(frames, axis=1)


def ghosted(c: Clips, rng) -> np.ndarray:
    """Every other frame a blend of the moments before and after it."""
    del rng
    times = np.asarray(c.times)
    early, late = (_again(c, np.clip(times + by, 0, 1)) for by in (-0.12, 0.12))
    odd = (np.arange(len(times)) % 2 == 1)[:, None, None, None]
    return np.where(odd, 0.5 * (early + late), c.video)


def faded(c: Clips, rng) -> np.ndarray:
    """Every third frame with a thing half gone."""
    del rng
    third = np.arange(len(c.times)) % 3 == 1 if len(c.times) > 1 else np.ones(1, bool)
    return _mix(c.video, c.empty, np.broadcast_to(0.5 * third[:, None, None], c.cover.shape))


class Sort(NamedTuple):
    """A sort of damage: what does it, which verdict it takes away, the words it is done to (kind:
    index, any one of several) and whether a single frame shows it."""

    spoil: Callable[[Clips, np.random.Generator], np.ndarray]
    takes: str
    fixed: dict[str, tuple[int, ...]]
    single: bool = True


_MOVES = tuple(i for i in range(8) if i not in (GROWING, SHRINKING, SPINNING))
_SPINS = {"motion": (SPINNING,)}
TUNING = {
    "blurred": Sort(blurred, "texture", {}),
    "melted": Sort(melted, "thing", {}),
    "bitten": Sort(bitten, "thing", {}),
    "faceless": Sort(faceless, "thing", {"thing": (CUBE, PYRAMID)}),
    "frozen": Sort(frozen, "motion", _SPINS, single=False),
    "faded": Sort(faded, "thing", {}, single=False),
}
HELD_OUT = {
    "coarse": Sort(coarse, "texture", {}),
    "wobbling": Sort(wobbling, "thing", {}),
    "dented": Sort(dented, "thing", {}),
    "armless": Sort(armless, "thing", {"thing": (STAR,)}),
    "torn": Sort(torn, "thing", {"thing": (RING,)}),
    "grown": Sort(grown, "thing", {}),
    "lump": Sort(lump, "thing", {"thing": (CUBE,)}),
    "still": Sort(still, "motion", {}, single=False),
    "swelling": Sort(swelling, "motion", _SPINS, single=False),
    "ghosted": Sort(ghosted, "thing", {"motion": _MOVES}, single=False),
}


def damaged(
    sort: Sort, count: int, frames: int, size: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """`count` clips of a sort: uint8 [count, frames, H, W, 3], and their words [count, 4]."""
    rng = np.random.default_rng(seed)
    fixed = {name: rng.choice(some, count) for name, some in sort.fixed.items()}
    keys = named.split(named.seed(seed), count)
    worlds = _worlds(keys, fixed)
    times = frame_times(frames) if frames > 1 else jnp.asarray([rng.uniform()], jnp.float32)
    c = drawn(worlds, times, size)
    video = np.clip(sort.spoil(c, rng), 0, 1)
    return np.round(video * 255).astype(np.uint8), c.words
