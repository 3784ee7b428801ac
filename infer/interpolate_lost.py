"""Small things that jump further than the network can follow. (A method of this project's own.)

A ball that goes a third of the picture's width from one frame to the next is not moved by the
network: it fades where it was, is nowhere for a while, and appears where it will be. It is noticed
by what should be between its two places and is not. Then it is held: both places show the nearer
frame, and the thing jumps whole, as it does in the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mv2_jax.infer.interpolate_layout import RGB, SPARSE, Layout
from mv2_jax.infer.interpolate_pictures import Planes

_SIDE = 320  # pixels of the longer side of the pictures that are looked at
_FAR = 24.0  # grey levels by which a picture differs where something came or went
_LEAST = 12  # pixels of it
_WHOLE = 0.4  # and of the rectangle about it: edges of what moves are thinner
_MOST = 0.05  # of the picture; what is larger is followed, or is the whole that moves
_STEADY = 0.5  # of a change, its mean: both edges of what moves a little cancel each other
_ALIKE = 32.0  # grey levels by which one thing may differ from itself, at its two places
_SIZES = 2.0  # and how often one of its two areas may hold the other
_APART = 1.1  # and how far apart they are at least, in lengths of the longer
_SEEN = 0.2
"""Of a thing's area, how much must be new between its places. Of balls that are followed it is 0.5
and more, of those that are not 0.0 (tests/infer/test_interpolate_lost.py)."""
_EVEN = 0.35  # spread of the share of the second picture in a place that only fades
_MANY = 40  # things; where more move, it is the whole
_STILL = 0.02  # share of the ground about a thing that may move
_NEAR = (0.25, 0.75)  # parts of a gap at which something between can be told from its ends


class Thing(NamedTuple):
    """Where something came or went: its number, area, corners (top, left, bottom, right), and its
    mean colour in the first and the second picture."""

    number: int
    area: int
    box: tuple[int, int, int, int]
    colours: tuple[np.ndarray, np.ndarray]


def held(
    first: Planes, second: Planes, parts: Sequence[float], made: Sequence[Planes], layout: Layout
) -> tuple[Sequence[Planes], bool]:
    """The pictures `made` at `parts` of a gap, what was lost in them held; and whether any was."""
    middle = min(range(len(parts)), key=lambda k: abs(parts[k] - 0.5), default=None)
    if middle is None or not _NEAR[0] <= parts[middle] <= _NEAR[1]:
        return made, False
    step = max(1, -(-max(layout.height, layout.width) // _SIDE))
    ends = [_small(planes, layout, step) for planes in (first, second)]
    mask, things = _things(*ends)
    if not 2 <= len(things) <= _MANY:
        return made, False
    between = _small(made[middle], layout, step)
    pairs = [(a, b) for a in things for b in things if a.number < b.number and _same(a, b)]
    edges = {thing.number for pair in pairs if not _apart(*pair) for thing in pair}
    jumped = {t.number for t in things if t.number not in edges and _faded(between, *ends, mask, t)}
    pairs = [(a, b) for a, b in pairs if {a.number, b.number} <= jumped]
    unlike = np.abs(ends[1] - ends[0]).max(-1) > _FAR / 2
    pairs = [pair for pair in pairs if _still(unlike, mask, *pair)]
    if not pairs:
        return made, False
    new = _new(between, *ends, mask > 0)
    lost = [
        (one, other)
        for one, other in pairs
        if new[_about(one, other)].sum() < _SEEN * min(one.area, other.area)
    ]
    if not lost:
        return made, False
    numbers = sorted({thing.number for pair in lost for thing in pair})
    places = _grown(np.isin(mask, numbers), 2)
    nearer = (second if part >= 0.5 else first for part in parts)
    return [_put(m, end, places, layout, step) for m, end in zip(made, nearer)], True


def _small(planes: Planes, layout: Layout, step: int) -> np.ndarray:
    """Planes -> fp32 [h, w, channels] in 0 to 255, each the mean of a square of `step` pixels."""
    height, width = layout.height // step, layout.width // step
    channels = []
    for k, plane in enumerate(planes):
        tall, wide = (step // sub if step % sub == 0 else 0 for sub in _sparse(layout, k))
        if not tall * wide:  # squares that hold parts of samples
            rows, columns = _sparse(layout, k)
            plane, tall, wide = plane.repeat(rows, axis=0).repeat(columns, axis=1), step, step
        # Rows first, which lie together in memory.
        sums = plane[: height * tall].reshape(height, tall, -1).sum(axis=1, dtype=np.float32)
        sums = sums[:, : width * wide].reshape(height, width, wide).sum(axis=2)
        channels.append(sums / (tall * wide))
    return np.stack(channels, axis=-1) / 2 ** (layout.bits - 8)


def _sparse(layout: Layout, k: int) -> tuple[int, int]:
    """How many pixels, down and across, a sample of plane `k` stands for."""
    return SPARSE[layout.chroma] if k in (1, 2) and layout.chroma != RGB else (1, 1)


def _things(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, list[Thing]]:
    """The places [h, w] where two small pictures differ, numbered from 1, and those of them that
    may be things."""
    from scipy import ndimage

    far = np.abs(second - first).max(-1) > _FAR
    labels, _ = ndimage.label(_grown(far, 1))
    labels = np.where(far, labels, 0)
    found = []
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        if place is None:
            continue
        inside = labels[place] == number
        area = int(inside.sum())
        if not (_LEAST <= area <= _MOST * far.size and area >= _WHOLE * inside.size):
            continue
        change = second[place][inside] - first[place][inside]
        steady = np.linalg.norm(change.mean(axis=0)) / np.linalg.norm(change, axis=-1).mean()
        if steady >= _STEADY:
            colours = tuple(picture[place][inside].mean(axis=0) for picture in (first, second))
            box = (place[0].start, place[1].start, place[0].stop, place[1].stop)
            found.append(Thing(number, area, box, colours))
    return labels, found


def _faded(
    made: np.ndarray, first: np.ndarray, second: np.ndarray, labels: np.ndarray, thing: Thing
) -> bool:
    """Whether a place shows a mixture of the two ends, the same one everywhere in it. Where a thing
    moves by less than its size, some of the place is its past already, and some is not yet."""
    top, left, bottom, right = thing.box
    place = np.s_[top:bottom, left:right]
    inside = labels[place] == thing.number
    way, now = (x[place][inside] for x in (second - first, made - first))
    share = (now * way).sum(-1) / (way * way).sum(-1)
    beside = np.abs(now - share[:, None] * way).max(-1)
    return bool(share.std() < _EVEN and beside.mean() < _FAR / 2)


def _same(one: Thing, other: Thing) -> bool:
    """Whether what went from one place may be what came to the other, or the other way around."""
    if max(one.area, other.area) > _SIZES * min(one.area, other.area):
        return False
    apart = (
        np.abs(one.colours[k] - other.colours[1 - k]).max()
        for k in (0, 1)  # there, and back
    )
    return min(apart) <= _ALIKE


def _apart(one: Thing, other: Thing) -> bool:
    """Whether two places are further apart than either is long. The two edges of what moves by less
    than its size are places too, never so far apart, and what lies between them is no new picture.
    """
    centres = [np.array([t.box[0] + t.box[2], t.box[1] + t.box[3]]) / 2 for t in (one, other)]
    sides = (t.box[k + 2] - t.box[k] for t in (one, other) for k in (0, 1))
    return bool(np.linalg.norm(centres[1] - centres[0]) > _APART * max(sides))


def _new(made: np.ndarray, first: np.ndarray, second: np.ndarray, far: np.ndarray) -> np.ndarray:
    """Where a made picture shows what neither end does [h, w], beside the places that differ."""
    unlike = (np.abs(made - end).max(-1) > _FAR / 2 for end in (first, second))
    return np.logical_and(*unlike) & ~_grown(far, 1)


def _about(one: Thing, other: Thing) -> tuple[slice, slice]:
    """The rectangle of two places, and half a thing around it."""
    corners = zip((min, min, max, max), one.box, other.box)
    top, left, bottom, right = (choose(a, b) for choose, a, b in corners)
    side = max(one.box[2] - one.box[0], one.box[3] - one.box[1]) // 2
    return np.s_[max(0, top - side) : bottom + side, max(0, left - side) : right + side]


def _still(unlike: np.ndarray, labels: np.ndarray, one: Thing, other: Thing) -> bool:
    """Whether nothing else moves about two places."""
    about = _about(one, other)
    own = _grown(np.isin(labels[about], (one.number, other.number)), 2)
    return float((unlike[about] & ~own).mean()) <= _STILL


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    from scipy import ndimage

    return ndimage.binary_dilation(mask, np.ones((3, 3), bool), iterations=by)


def _put(made: Planes, end: Planes, places: np.ndarray, layout: Layout, step: int) -> Planes:
    """A made picture that is as `end` in some places [h, w] of the small picture."""
    whole = places.repeat(step, axis=0).repeat(step, axis=1)
    spare = ((0, layout.height - whole.shape[0]), (0, layout.width - whole.shape[1]))
    whole = np.pad(whole, spare, mode="edge")
    planes = []
    for k, (new, old) in enumerate(zip(made, end)):
        rows, columns = _sparse(layout, k)
        mask = whole.reshape(new.shape[0], rows, new.shape[1], columns).any(axis=(1, 3))
        planes.append(np.where(mask, old, new))
    return tuple(planes)
