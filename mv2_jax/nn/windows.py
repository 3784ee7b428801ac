"""Attention inside small squares of a plane, and how a plane is cut into them.

Letters: B batch, H and W the plane, C channels, S a square's side in tokens, L = S * S its tokens,
R rows (B times the squares of a plane, in reading order, the batch slowest), N heads, D and E the
widths of a head's keys and values.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def blocks(x: Array, side: int) -> Array:
    """Neighbouring tokens together: [B, H, W, C] -> [R, L, C]; `side` divides H and W."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side, channels)


def unblocks(x: Array, height: int, width: int, side: int) -> Array:
    """Inverse of `blocks`: [R, L, C] -> [B, height, width, C]."""
    rows, columns = height // side, width // side
    x = x.reshape(-1, rows, columns, side, side, x.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, x.shape[-1])


def grids(x: Array, side: int) -> Array:
    """Tokens H / side and W / side apart together (MaxViT's grids, arXiv 2204.01697).

    [B, H, W, C] -> [R, L, C]; `side` divides H and W.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, side, height // side, side, width // side, channels)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, side * side, channels)


def ungrids(x: Array, height: int, width: int, side: int) -> Array:
    """Inverse of `grids`: [R, L, C] -> [B, height, width, C]."""
    rows, columns = height // side, width // side
    x = x.reshape(-1, rows, columns, side, side, x.shape[-1])
    return x.transpose(0, 3, 1, 4, 2, 5).reshape(-1, height, width, x.shape[-1])


def attend_biased(q: Array, k: Array, v: Array, bias: Array | None) -> Array:
    """softmax(q k^T / sqrt(D) + bias) v with the softmax in fp32.

    `nn.attention.attend` knows no bias and gives values the width of keys. The squares here hold
    some 50 tokens, so the plain formula has nothing to gain from blocks.

    Args:
        q, k: [R, L, N, D]. v: [R, L, N, E], of the same type.
        bias: [G, N or 1, L, L], G a divisor of R: row r takes bias[r % G]. None adds nothing.

    Returns:
        [R, L, N, E].
    """
    scores = jnp.einsum("rqnd,rknd->rnqk", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    if bias is not None:
        rows, heads, length, _ = scores.shape
        shaped = scores.reshape(rows // bias.shape[0], *(bias.shape[0], heads, length, length))
        scores = (shaped + bias[None].astype(jnp.float32)).reshape(scores.shape)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("rnqk,rkne->rqne", weights, v)
