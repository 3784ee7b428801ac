"""What can be measured of a video without people: flicker, motion, sharpness, consistency.

Clips are uint8 RGB [T, H, W, 3]. Each function says what its number is of, and whose it is.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy import ndimage

from mv2_jax.infer import metrics

_LUMA = np.array([0.2126, 0.7152, 0.0722])  # BT.709
_LEVELS = 4  # of the flow's pyramid
_WINDOW = 2.5  # sigma of the flow's Gaussian window, pixels
_TURNS = 4  # steps of the flow at each level
_EDGE = 12  # pixels around a frame where things come and go: their motion is a guess
_TOP = 0.05  # share of the fastest pixels, as VBench takes it


def grey(frames: np.ndarray) -> np.ndarray:
    """Brightness [..., H, W] in grey levels, 0 to 255 (BT.709's luma)."""
    return frames.astype(np.float64) @ _LUMA


def frame_difference(frames: np.ndarray) -> float:
    """Mean absolute difference of neighbouring frames, in grey levels: x of VBench's temporal
    flickering (255 - x) / 255, which counts motion as well (arXiv 2311.17982)."""
    if len(frames) < 2:
        return float("nan")
    neighbours = itertools.pairwise(frames)
    return float(np.mean([np.abs(a.astype(np.int16) - b).mean() for a, b in neighbours]))


def flicker(frames: np.ndarray) -> float:
    """How far a frame's mean brightness is from the middle of its neighbours', in grey levels, on
    average: 0 of a still, of a shift and of an even fade; twice the amplitude of a brightness that
    alternates by it."""
    level = grey(frames).mean(axis=(1, 2))
    if len(level) < 3:
        return float("nan")
    return float(np.abs(level[1:-1] - (level[:-2] + level[2:]) / 2).mean())


def sharpness(frames: np.ndarray) -> float:
    """Variance of the Laplacian of brightness, in grey levels squared (Pech-Pacheco et al., ICPR
    2000): the less, the softer."""
    return float(np.mean([ndimage.laplace(grey(frame)).var() for frame in frames]))


def steps(frames: np.ndarray, times: int) -> float:
    """How far made frames' mean brightness is from the line between the given frames around them,
    in grey levels, on average: the pulse that interpolation may add.

    Args:
        times: every `times`-th frame, from the first on, is given.
    """
    level = grey(frames).mean(axis=(1, 2))
    number = np.arange(len(level))
    given = number % times == 0
    made = ~given & (number < number[given][-1])
    if not made.any():
        return float("nan")
    line = np.interp(number[made], number[given], level[given])
    return float(np.abs(level[made] - line).mean())


def consistency(frames: np.ndarray, picture: np.ndarray) -> float:
    """Mean structural similarity of the frames to a picture [H, W, 3] of their size: 1 where all
    are it."""
    return float(np.mean([metrics.ssim(frame, picture) for frame in frames]))


def motion(frames: np.ndarray) -> tuple[float, float]:
    """(dynamic degree, jerk) in pixels a frame.

    Dynamic degree: mean speed of the fastest 5% of pixels, as VBench takes it, with the flow below
    in place of RAFT. Jerk: mean change of the flow from one pair of frames to the next, at a place:
    0 where all moves evenly.
    """
    if len(frames) < 2:
        return float("nan"), float("nan")
    levels = grey(frames)
    height, width = levels.shape[1:]
    edge = min(_EDGE, height // 4, width // 4)
    inner = (slice(None), slice(edge, height - edge), slice(edge, width - edge))
    flows = [flow(a, b)[inner] for a, b in itertools.pairwise(levels)]
    fast = []
    for field in flows:
        speed = np.sort(np.hypot(*field), axis=None)
        fast.append(speed[-max(1, int(_TOP * speed.size)) :].mean())
    changes = [np.hypot(*(b - a)).mean() for a, b in itertools.pairwise(flows)]
    return float(np.mean(fast)), float(np.mean(changes)) if changes else float("nan")


def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Motion [2, H, W] (down, right) in pixels from one frame [H, W] to the next: Lucas and
    Kanade's (IJCAI 1981), from coarse to fine. Where all is flat there is nothing to see: 0."""
    pyramid = [(first, second)]
    while len(pyramid) < _LEVELS and min(pyramid[-1][0].shape) >= 32:
        pyramid.append(tuple(_half(frame) for frame in pyramid[-1]))
    field = np.zeros((2, *pyramid[-1][0].shape))
    for a, b in reversed(pyramid):
        if field.shape[1:] != a.shape:
            grown = [a.shape[0] / field.shape[1], a.shape[1] / field.shape[2]]
            field = np.stack([ndimage.zoom(part, grown, order=1) * grown[axis]
                              for axis, part in enumerate(field)])  # fmt: skip
        field = _refined(field, a, b)
    return field


def _half(frame: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(frame, 1.0)[::2, ::2]


def _refined(field: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    places = np.indices(first.shape).astype(np.float64)
    down, right = (ndimage.sobel(first, axis) / 8 for axis in (0, 1))

    def around(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, _WINDOW)

    height, width = first.shape
    for _ in range(_TURNS):
        at = places + field
        inside = (at[0] >= 0) & (at[0] <= height - 1) & (at[1] >= 0) & (at[1] <= width - 1)
        # What leaves the frame is not seen again, and says nothing.
        y, x = down * inside, right * inside
        dd, dr, rr = around(y * y), around(y * x), around(x * x)
        ground = 0.02 * (dd + rr) + 0.05  # holds what has no edges, or edges one way alone
        det = (dd + ground) * (rr + ground) - dr * dr
        late = ndimage.map_coordinates(second, at, order=1, mode="nearest") - first
        d, r = around(y * late), around(x * late)
        field = field - np.stack([((rr + ground) * d - dr * r) / det,
                                  ((dd + ground) * r - dr * d) / det])  # fmt: skip
    return field


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of two sets of features [n, d], each taken as a Gaussian (Dowson and Landau,
    J. Multivariate Anal. 12, 1982): the square of it, as FID has it. It is FID over Inception's
    features alone."""
    a, b = first.mean(axis=0), second.mean(axis=0)
    s, t = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (first, second))
    # The trace of the root of s t is that of the root of the symmetric r t r, where r r = s.
    value, vector = np.linalg.eigh(s)
    root = (vector * np.sqrt(value.clip(0))) @ vector.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ t @ root).clip(0)).sum()
    return float(((a - b) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * cross)
