"""How close one picture or video is to another."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

# The window and constants of the paper that defined SSIM.
_RADIUS, _SIGMA = 5, 1.5
_K1, _K2 = 0.01, 0.03


def psnr(first: np.ndarray, second: np.ndarray, *, span: float | None = None) -> float:
    """Peak signal-to-noise ratio in dB over all values; infinity where both are equal.

    Args:
        first, second: arrays of one shape, such as [H, W, C] or [T, H, W, C].
        span: largest minus smallest possible value; None takes 255 for uint8 and asks otherwise.

    Raises:
        ValueError: shapes or types differ, or floating-point values without a span.
    """
    first, second, span = _pair(first, second, span)
    error = np.square(first - second).mean()
    return float("inf") if error == 0 else float(10 * np.log10(span * span / error))


def ssim(first: np.ndarray, second: np.ndarray, *, span: float | None = None) -> float:
    """Mean structural similarity (Wang et al., IEEE TIP 13, 2004): 1 where both are equal.

    Means, variances and covariance are taken under a Gaussian window of 11 x 11 pixels and sigma
    1.5, wherever it fits into the picture; then the mean over places, channels and frames.

    Args:
        first, second: [..., H, W, C] of one shape, H and W at least 11.
        span: as `psnr`.

    Raises:
        ValueError: as `psnr`, or a picture smaller than the window.
    """
    first, second, span = _pair(first, second, span)
    side = 2 * _RADIUS + 1
    if first.ndim < 3 or min(first.shape[-3:-1]) < side:
        raise ValueError(f"ssim needs [..., H, W, C] of {side} x {side} or more; got {first.shape}")
    if first.ndim > 3:
        # Frame by frame: the windowed moments of a whole video would take five times its memory.
        frames = zip(first.reshape(-1, *first.shape[-3:]), second.reshape(-1, *first.shape[-3:]))
        return float(np.mean([ssim(a, b, span=span) for a, b in frames]))
    mean_a, mean_b = _window(first), _window(second)
    variance_a = _window(first * first) - mean_a * mean_a
    variance_b = _window(second * second) - mean_b * mean_b
    covariance = _window(first * second) - mean_a * mean_b
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    similar = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    scale = (mean_a * mean_a + mean_b * mean_b + c1) * (variance_a + variance_b + c2)
    return float((similar / scale).mean())


def sharpness(made: np.ndarray, real: np.ndarray) -> float:
    """How much neighbouring pixels differ, as a share of how much they do in the real picture.

    1 is as sharp, less is softer; a flat real picture counts as if its pixels differed by 1e-6.

    Args:
        made, real: [..., H, W, C] of one shape and type.
    """

    def edges(x: np.ndarray) -> float:
        x = x.astype(np.float64)
        return sum(np.abs(np.diff(x, axis=axis)).mean() for axis in (-3, -2))

    return float(edges(made) / max(edges(real), 1e-6))


def _pair(
    first: np.ndarray, second: np.ndarray, span: float | None
) -> tuple[np.ndarray, np.ndarray, float]:
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or first.dtype != second.dtype:
        raise ValueError(
            f"cannot compare {first.shape} {first.dtype} with {second.shape} {second.dtype}"
        )
    if span is None:
        if first.dtype != np.uint8:
            raise ValueError(f"values of {first.dtype} have no known span; pass span=")
        span = 255.0
    return first.astype(np.float64), second.astype(np.float64), float(span)


def _window(x: np.ndarray) -> np.ndarray:
    """Gaussian mean around every place where the window fits: [H, W, C] -> [H-10, W-10, C]."""
    weights = np.exp(-0.5 * (np.arange(-_RADIUS, _RADIUS + 1) / _SIGMA) ** 2)
    weights /= weights.sum()
    inside = slice(_RADIUS, -_RADIUS)
    x = ndimage.correlate1d(x, weights, axis=0, mode="constant")[inside]
    return ndimage.correlate1d(x, weights, axis=1, mode="constant")[:, inside]
