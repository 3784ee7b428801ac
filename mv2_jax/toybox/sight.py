"""What a picture or a clip of the toybox shows, measured against the true render nearest to it.

Each frame is compared with the fit of the asked-for words (`fit`): the overlap of the thing's
mask with the fit's, how much of the light and pattern on the thing the fit explains, which of the
colours fits best, how well the scene does, and how much of the fine detail is there. Over a clip
the worst frame counts, the outline has to be steady, and place, size and angle have to go the way
of the asked-for motion. A word is right where every number that speaks of it is within its bound
(`BOUNDS`), which `benchmarks/judging.py` puts to the test.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.toybox import fit as fits
from mv2_jax.toybox import things
from mv2_jax.toybox.masks import small
from mv2_jax.toybox.world import (
    BOUNCING,
    FALLING,
    GROWING,
    LEFT,
    RIGHT,
    RISING,
    SHRINKING,
    SPINNING,
    bounce,
)

KINDS = ("thing", "colour", "scene", "motion", "texture")
WORDS = KINDS[:4]  # the others are of how it is drawn, not of what
FRAMES = 8  # of a clip that are looked at, evenly
_SECTORS = 24  # of the outline
_TURNS = (1, 3, 5, 1, 3, 1)  # turned by a full turn over so many, a thing's outline and faces agree


class Bound(NamedTuple):
    """Where a number is right: from `low` to `high`; which verdict it belongs to, and its words."""

    kind: str
    low: float
    high: float
    says: str


BOUNDS = {
    "overlap": Bound("thing", 0.95, 1.0, "IoU with the best-fitting true mask, worst frame"),
    "dent": Bound("thing", 0.0, 0.12, "the outline's worst error in a sector, worst frame"),
    "faces": Bound("thing", 0.7, 1.0, "share of cube's and pyramid's light explained, worst frame"),
    "unsteadiness": Bound("thing", 0.0, 0.03, "change of the outline from frame to frame"),
    "colour": Bound("colour", -1.0, 0.0, "distance to the asked colour less that to any other"),
    "misfit": Bound("scene", 0.0, 0.16, "share of the scene that the fit leaves out, worst frame"),
    "path": Bound("motion", 0.0, 0.08, "how far the path is from the asked motion's nearest"),
    "pace": Bound("motion", 0.6, 1.5, "length of the way, of what is asked"),
    "drift": Bound("motion", 0.0, 0.2, "the way in what should not change"),
    "turning": Bound("motion", 0.85, 1.0, "agreement of the angles with the asked turn"),
    "pattern": Bound("texture", 0.6, 1.0, "share of light and pattern explained, mean"),
    "detail": Bound("texture", 0.8, 1.3, "fine detail about the thing, of the fit's, mean"),
}


class Sight(NamedTuple):
    """Of clips [B]: by kind whether it is right [B] and under "all" whether all words are; numbers
    [B] by name (nan where one says nothing), and those of each frame [B, T]."""

    right: dict[str, np.ndarray]
    numbers: dict[str, np.ndarray]
    frames: dict[str, np.ndarray]


def judge(videos, words) -> Sight:
    """Whether clips show the asked-for words.

    Args:
        videos: [B, T, H, W, 3], uint8, or float in [-1, 1]. One frame is a picture, of which
            nothing is said about motion.
        words: [B, 4] indices (thing, colour, scene, motion).

    Raises:
        ValueError: shapes that do not fit together.
    """
    videos, words = np.asarray(videos), np.asarray(words, np.int32)
    if videos.ndim != 5 or videos.shape[-1] != 3 or words.shape != (len(videos), 4):
        raise ValueError(
            f"videos {list(videos.shape)} and words {list(words.shape)} are not "
            "[B, T, H, W, 3] and [B, 4]"
        )
    count, length = videos.shape[:2]
    picks = np.unique(np.linspace(0, length - 1, min(length, FRAMES)).round().astype(int))
    pictures = videos[:, picks].reshape(-1, *videos.shape[2:])
    asked = np.repeat(words, len(picks), axis=0)
    found, _ = fits.fit(pictures, asked)
    seen = _look(pictures, asked, found)
    seen, found = (
        jax.tree.map(lambda leaf: leaf.reshape(count, len(picks), *leaf.shape[1:]), tree)
        for tree in (seen, found)
    )
    numbers = _over_frames(seen, words)
    if len(picks) > 1:
        times = picks / (length - 1)
        numbers |= way(found, words, times)
    right = {kind: np.ones(count, bool) for kind in KINDS}
    for name, values in numbers.items():
        bound = BOUNDS[name]
        inside = (values >= bound.low) & (values <= bound.high)
        right[bound.kind] &= inside | np.isnan(values)
    if len(picks) == 1:
        right.pop("motion")
    right["all"] = np.logical_and.reduce([right[kind] for kind in WORDS if kind in right])
    return Sight(right, numbers, {**seen, **found._asdict()})


def score(seen: Sight) -> np.ndarray:
    """One number a clip [B], at most 0: how far the numbers are beyond their bounds, summed, each
    in widths of its range and no more than 3; 0 where all is right."""
    total = np.zeros(len(next(iter(seen.numbers.values()))))
    for name, values in seen.numbers.items():
        bound = BOUNDS[name]
        beyond = np.maximum(bound.low - values, values - bound.high) / (bound.high - bound.low)
        total -= np.nan_to_num(np.clip(beyond, 0, 3))
    return total


def _over_frames(seen, words) -> dict[str, np.ndarray]:
    solid = (words[:, 0] == things.CUBE) | (words[:, 0] == things.PYRAMID)
    numbers = {
        "overlap": seen["overlap"].min(axis=1),
        "dent": np.abs(seen["outline"]).max(axis=(1, 2)),
        "faces": np.where(solid, seen["pattern"].min(axis=1), np.nan),
        "colour": seen["colour"].max(axis=1),
        "misfit": seen["misfit"].max(axis=1),
        "pattern": seen["pattern"].mean(axis=1),
        "detail": seen["detail"].mean(axis=1),
    }
    if seen["overlap"].shape[1] > 1:
        change = np.diff(seen["outline"], axis=1)
        numbers["unsteadiness"] = np.sqrt(np.square(change).mean(axis=2)).max(axis=1)
    return numbers


def _look(pictures, words, found, chunk: int = 16) -> dict[str, np.ndarray]:
    parts = []
    for start in range(0, len(pictures), chunk):
        part = [jax.tree.map(lambda leaf, s=start: leaf[s : s + chunk], tree)
                for tree in (pictures, words, found)]  # fmt: skip
        missing = chunk - len(part[1])
        padded = jax.tree.map(
            lambda leaf, n=missing: np.pad(leaf, [(0, n)] + [(0, 0)] * (leaf.ndim - 1), "edge"),
            part,
        )
        out = jax.device_get(_measured(*padded))
        parts.append({name: value[: chunk - missing] for name, value in out.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@jax.jit
def _measured(pictures, words, found):
    whole = pictures.astype(jnp.float32)
    whole = whole / 255 if pictures.dtype == jnp.uint8 else whole * 0.5 + 0.5

    def one(args):
        picture, asked, fit = args
        true = fits.draw(fit, asked, picture.shape[:2])
        # Both are made smaller in the same way, so that nothing differs but the pictures.
        few, true_few = (small(2 * p[None] - 1)[0] * 0.5 + 0.5 for p in (picture, true.picture))
        return {**_measure(few, true_few, asked, fit), "detail": _detail(picture, true)}

    return jax.lax.map(one, (whole, words, found))


def _measure(picture, true, words, found):
    """The numbers of one picture [h, w, 3] in [0, 1] but for its fine detail; `true`: the fit's."""
    layers = fits.draw(found, words, picture.shape[:2])
    toward = layers.thing - layers.behind
    contrast = jnp.sum(jnp.square(toward), axis=-1)
    weight = contrast / (contrast + 0.03)

    def cover(x):
        alpha = jnp.sum((x - layers.behind) * toward, axis=-1) / (contrast + 1e-3)
        # What is less than a fifth there is noise; what is more than four fifths is all there.
        return jnp.clip((alpha - 0.2) / 0.6, 0.0, 1.0)

    mine, its = cover(picture), cover(true)
    both = jnp.sum(weight * jnp.minimum(mine, its))
    either = jnp.sum(weight * jnp.maximum(mine, its))
    inside = _shrunk(layers.cover > 0.98).astype(jnp.float32)
    outside = _shrunk(layers.cover < 0.01).astype(jnp.float32)
    share = jnp.square((picture - true) / 0.12).sum(axis=-1)
    lost = share / (1 + share)
    return {
        "overlap": both / jnp.maximum(either, 1e-6),
        "outline": _sectors(weight * (mine - its), found, picture.shape[:2]) / jnp.sum(its),
        "pattern": _explained(picture, true, inside),
        "colour": _colour(picture, words, found, inside),
        "misfit": jnp.sum(lost * outside) / jnp.maximum(jnp.sum(outside), 1.0),
    }


def _shrunk(mask):
    """A mask [h, w] without what touches its edge."""
    return jax.lax.reduce_window(mask, True, jnp.logical_and, (3, 3), (1, 1), "SAME")


def _explained(picture, paint, inside):
    """How much of the variation of light over the thing the fit explains, at most 1."""
    count = jnp.maximum(jnp.sum(inside), 1.0)

    def centred(x):
        mean = jnp.sum(x * inside[..., None], axis=(0, 1), keepdims=True) / count
        return (x - mean) * inside[..., None]

    seen, true = centred(picture), centred(paint)
    return 1 - jnp.sum(jnp.square(seen - true)) / jnp.maximum(jnp.sum(jnp.square(true)), 1e-6)


def _colour(picture, words, found, inside):
    """Distance to the thing in the asked colour less the least to one in any other."""
    size = picture.shape[:2]

    def away(colour):
        layers = fits.draw(found, words.at[1].set(colour), size)
        square = jnp.square(picture - layers.thing).sum(axis=-1)
        return jnp.sqrt(jnp.sum(square * inside) / jnp.maximum(jnp.sum(inside), 1.0))

    far = jax.lax.map(away, jnp.arange(8))
    return far[words[1]] - jnp.min(far.at[words[1]].set(jnp.inf))


def _sectors(error, found, size):
    """Sums [sectors] of an error plane by angle about the thing's middle, in its own frame."""
    y = 1 - (jnp.arange(size[0]) + 0.5) * 2 / size[0]
    x = ((jnp.arange(size[1]) + 0.5) - size[1] / 2) * 2 / size[0]
    angle = jnp.arctan2(y[:, None] - found.y, x[None] - found.x) - found.angle
    sector = jnp.floor(angle / (2 * jnp.pi) * _SECTORS).astype(jnp.int32) % _SECTORS
    return jnp.zeros(_SECTORS).at[sector.ravel()].add(error.ravel()) * _SECTORS


def _detail(picture, layers):
    """Fine detail of a picture [H, W, 3] in [0, 1] about the thing, of what the fit's has there."""
    near = jax.lax.reduce_window(layers.cover, 0.0, jax.lax.max, (7, 7), (1, 1), "SAME") > 0

    def fine(x):
        total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (3, 3, 1), (1, 1, 1), "SAME")
        return ((x - total / 9) * near[..., None])[1:-1, 1:-1]

    true = fine(layers.picture)
    return jnp.sum(fine(picture) * true) / jnp.maximum(jnp.sum(jnp.square(true)), 1e-9)


def way(found: fits.Fit, words, times) -> dict[str, np.ndarray]:
    """How place, size and angle [B, T] of fits go over `times` [T], by the asked motions: the
    numbers of `BOUNDS` that speak of motion, [B] each."""
    words, times = np.asarray(words), np.asarray(times, np.float64)
    tracks = {"x": found.x, "y": found.y, "size": np.log2(found.radius)}
    swing = times - 0.5
    height = np.asarray(bounce(times, 1.0)[0])
    asked = {
        LEFT: ("x", -swing, 0.82),
        RIGHT: ("x", swing, 0.82),
        RISING: ("y", swing, 0.82),
        FALLING: ("y", -swing, 0.82),
        BOUNCING: ("y", height, 0.82),
        GROWING: ("size", swing, 1.0),
        SHRINKING: ("size", -swing, 1.0),
        SPINNING: ("", swing, 1.0),
    }
    numbers = {n: np.full(len(words), np.nan) for n in ("path", "pace", "drift", "turning")}
    for i, (thing, _, _, motion) in enumerate(words):
        axis, basis, length = asked[int(motion)]
        off, drift = [], []
        for name, track in tracks.items():
            amount, rest = _along(track[i], basis if name == axis else swing)
            off.append(rest)
            if name == axis:
                numbers["pace"][i] = amount / length
            else:
                drift.append(abs(amount))
        numbers["path"][i], numbers["drift"][i] = max(off), max(drift)
        if motion == SPINNING:
            numbers["turning"][i] = _turning(found.angle[i], times, _TURNS[thing])
    return numbers


def _along(track, basis) -> tuple[float, float]:
    """The amount of `basis` in a track [T], and the RMS of what is left."""
    centred = basis - basis.mean()
    amount = (track @ centred) / max(centred @ centred, 1e-9)
    rest = track - track.mean() - amount * centred
    return float(amount), float(np.sqrt(np.mean(rest**2)))


def _turning(angles, times, agree: int) -> float:
    """How well angles [T] follow a turn at one of the speeds there are, 0 to 1."""
    speeds = 2 * np.pi * np.linspace(0.54, 0.61, 15)
    left = agree * (angles[None] - speeds[:, None] * times[None])
    return float(np.abs(np.exp(1j * left).mean(axis=1)).max())
