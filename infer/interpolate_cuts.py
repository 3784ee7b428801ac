"""Is there a cut between two pictures? (A method of this project's own.)

Both are reduced to thumbnails, and every block of one is looked for in the other, some way around
its place. Motion leaves blocks that are found again; across a cut they are not, so what stays
unexplained of the blocks' contrast tells the two apart, even where motion is fast.
"""

from __future__ import annotations

import numpy as np

_SIDE = 80  # pixels of a thumbnail's longer side
_BLOCK = 8
_REACH = 10  # pixels of the thumbnail, an eighth of the picture, that motion may go in one gap
_NOISE = 2.0  # grey levels of contrast below which a block says nothing
UNEXPLAINED = 0.6
"""What remains, over the contrast, above which it is a cut. Across 112 cuts, between eight shots of
three clips, it is 0.88 or more and mostly above 1.5; in a clip of fast bicycles without its cuts it
is 0.35 or less."""
_FLAT = 3.0  # grey levels of contrast below which a picture shows nothing
_DIM = 25.0  # grey levels that something may come out of black by, in one frame of a fade
_ALIKE = 0.3  # what may stay unexplained between pictures whose brightness jumps
_MOVED = 0.8
# How much two pictures correlate in what both show, above which one is the other moved. By pans of
# 9% to 55% of the width of three clips it is 0.98 or more, across cuts at most 0.48; fades of the
# same clips leave 0.07 or less unexplained, cuts 0.85 or more.
JUMP = 60.0
"""Grey levels by which blocks change on average at a cut between flat pictures, or at a flash."""


def thumbnail(luma: np.ndarray, bits: int = 8, side: int = _SIDE) -> np.ndarray:
    """A luma plane [H, W] of `bits` bits -> fp32 [h, w] in 0 to 255, each the mean of a square."""
    step = max(1, max(luma.shape) // side)
    height, width = (max(1, length // step) for length in luma.shape)
    tall, wide = luma.shape[0] // height, luma.shape[1] // width
    tall, wide = min(step, tall), min(step, wide)  # a picture may be thinner than a step
    cells = luma[: height * tall, : width * wide].reshape(height, tall, width, wide)
    return cells.mean(axis=(1, 3), dtype=np.float32) / 2 ** (bits - 8)


def is_cut(first: np.ndarray, second: np.ndarray, least: float = UNEXPLAINED) -> bool:
    """Whether two thumbnails [h, w] of one size have a cut between them: more than `least` of them
    stays unexplained.

    A fade is none, from black or to it either, and neither is a pan, however fast, while a third of
    the picture stays in sight.
    """
    jumped = jump(first, second)
    contrast = first.std(), second.std()
    if min(contrast) < _FLAT:
        return jumped > (JUMP if max(contrast) < _FLAT else _DIM)
    # Fades change brightness and contrast by one factor, which is taken out.
    factor = contrast[0] / contrast[1]
    faded = (second - second.mean()) * factor + first.mean()
    # The search can only find less than staying in place leaves: most pairs need no search.
    for reach in (0, _REACH):
        seen = min(unexplained(first, x, reach) for x in (second, faded))
        if seen <= least and (jumped <= JUMP or seen <= _ALIKE):
            return False
    return not panned(first, second)


def panned(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether one thumbnail [h, w] is the other moved as a whole, in what both of them show."""
    small = [thumbnail(x, side=_SIDE // 2) for x in (first, second)]
    height, width = small[0].shape
    for down in range(-(height // 2), height // 2 + 1):
        for right in range(-(2 * width // 3), 2 * width // 3 + 1):
            tall, wide = height - abs(down), width - abs(right)
            if 3 * tall * wide < height * width:
                continue
            here, there = (
                x[max(0, y) : max(0, y) + tall, max(0, z) : max(0, z) + wide]
                for x, y, z in ((small[0], down, right), (small[1], -down, -right))
            )
            here, there = here - here.mean(), there - there.mean()
            power = float((here * here).sum() * (there * there).sum())
            if power < (_FLAT**2 * here.size) ** 2:
                continue
            if float((here * there).sum()) > _MOVED * power**0.5:
                return True
    return False


def jump(first: np.ndarray, second: np.ndarray) -> float:
    """By how many levels the blocks' means differ, on average."""
    return float(
        np.abs(_blocks(first).mean(axis=(1, 3)) - _blocks(second).mean(axis=(1, 3))).mean()
    )


def unexplained(first: np.ndarray, second: np.ndarray, reach: int = _REACH) -> float:
    """What the best blocks within `reach` leave of each other, over the contrast inside blocks.

    0 where each thumbnail shows all of the other; above 1 where a flat guess would be as good.
    """
    missed = _missed(first, second, reach) + _missed(second, first, reach)
    contrast = _contrast(first) + _contrast(second)
    return float(missed / contrast)


def _missed(picture: np.ndarray, other: np.ndarray, reach: int) -> float:
    """Squared error of the best block of `other` for every block of `picture`, summed.

    The pictures' means are made equal before: a flash is not a cut. Each block's is not: shapes on
    a thumbnail are few and simple, and what tells a cut best is how bright they are.
    """
    padded = np.pad(other - other.mean() + picture.mean(), reach, mode="edge")
    views = np.lib.stride_tricks.sliding_window_view(padded, picture.shape)
    best = None
    for row in views:  # a row of shifts at a time, to stay in the processor's cache
        least = np.square(_blocks(row - picture)).sum(axis=(-3, -1)).min(axis=0)
        best = least if best is None else np.minimum(best, least)
    return float(best.sum())


def _contrast(picture: np.ndarray) -> float:
    blocks = _blocks(picture)
    about = blocks - blocks.mean(axis=(-3, -1), keepdims=True)
    return float(np.square(about).sum() + blocks.size * _NOISE**2)


def _blocks(x: np.ndarray) -> np.ndarray:
    """[..., h, w] -> [..., rows, side, columns, side], what does not fill a block left out."""
    height, width = x.shape[-2:]
    tall, wide = min(_BLOCK, height), min(_BLOCK, width)
    rows, columns = height // tall, width // wide
    x = x[..., : rows * tall, : columns * wide]
    return x.reshape(*x.shape[:-2], rows, tall, columns, wide)
