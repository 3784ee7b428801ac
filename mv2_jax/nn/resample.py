"""Bicubic resizing as PIL and torch do it, said as one small matrix for each axis.

`jax.image.resize` knows only one cubic kernel (a = -0.5) and drops taps outside the image where
torch repeats the edge, so positions resized by it do not match a public vision encoder's.
Sizes are static, so the matrices are constants made by numpy.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (IEEE ASSP-29, 1981), zero from |x| = 2 on."""
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


@functools.cache
def cubic_matrix(
    source: int, target: int, *, a: float = -0.5, antialias: bool = True
) -> np.ndarray:
    """The linear map [target, source] that resizes one axis; each row sums to one.

    Args:
        source: samples before.
        target: samples after.
        a: the kernel's slope parameter: -0.5 as PIL (and torch with antialias), -0.75 as torch.
        antialias: widen the kernel when shrinking and renormalise at the edges, as PIL;
            otherwise four taps, the edge sample repeated beyond the edge, as torch.

    Returns:
        Read-only fp64 [target, source].
    """
    ratio = source / target
    centres = (np.arange(target) + 0.5) * ratio
    if antialias:
        stretch = max(ratio, 1.0)
        distance = np.arange(source)[None, :] + 0.5 - centres[:, None]
        matrix = _cubic(distance / stretch, a)
        # PIL takes whole samples whose index lies in the rounded support, not all within it.
        low = np.maximum(np.floor(centres - 2.0 * stretch + 0.5), 0)[:, None]
        high = np.minimum(np.floor(centres + 2.0 * stretch + 0.5), source)[:, None]
        index = np.arange(source)[None, :]
        matrix = np.where((index >= low) & (index < high), matrix, 0.0)
        matrix /= matrix.sum(axis=1, keepdims=True)
    else:
        matrix = np.zeros((target, source))
        first = np.floor(centres - 0.5)
        for tap in range(-1, 3):
            weight = _cubic(centres - 0.5 - (first + tap), a)
            index = np.clip(first + tap, 0, source - 1).astype(int)
            np.add.at(matrix, (np.arange(target), index), weight)
    matrix.setflags(write=False)
    return matrix


def apply_rows(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """Resize axis 1 of x [B, H, W, C] by matrix [H', H], in fp32."""
    return jnp.einsum("hs,bswc->bhwc", jnp.asarray(matrix, jnp.float32), x.astype(jnp.float32))


def apply_columns(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """Resize axis 2 of x [B, H, W, C] by matrix [W', W], in fp32."""
    return jnp.einsum("ws,bhsc->bhwc", jnp.asarray(matrix, jnp.float32), x.astype(jnp.float32))
