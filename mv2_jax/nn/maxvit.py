"""Attention over a plane by small squares, first of neighbours and then of a grid.

MaxViT's multi-axis attention (arXiv 2204.01697) as VQ-FIGAN uses it (LDMVFI, arXiv 2303.09508):
over the plane itself, or from the plane into two neighbouring frames' features.

Letters: B batch, H and W the plane, C channels, R squares, L tokens of a square, N heads.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from mv2_jax.nn.layers import Dtype, GroupNorm, LayerNorm, conv, dense
from mv2_jax.nn.windows import attend_biased, blocks, grids, unblocks, ungrids

EXPANSION = 4  # of an inverted residual's and a feed-forward's inner width
SHRINKAGE = 4  # of a squeeze's


class MaxAttention(nn.Module):
    """x [B, H, W, C] over itself, or over `context` [B, H, W, C'] -> [B, H, W, C].

    `window` divides both sides of the plane. `batch_norm` chooses the norm that `MBConv` brings
    the context in with.
    """

    heads: int
    window: int = 8
    batch_norm: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        height, width, channels = x.shape[1:]
        if context is not None:
            context = MBConv(channels, self.batch_norm, self.dtype, name="proj_in")(context)
        for kind, cut, join in (("block", blocks, unblocks), ("grid", grids, ungrids)):
            rows = cut(x, self.window)
            norm = LayerNorm(1e-5, name=f"attn_{kind}_norm")
            seen = norm(rows)
            other = seen if context is None else norm(cut(context, self.window))
            attention = SquareAttention(self.heads, self.window, self.dtype, name=f"attn_{kind}")
            rows = rows + attention(seen, other)
            seen = LayerNorm(1e-5, name=f"ff_{kind}_norm")(rows)
            rows = rows + FeedForward(self.dtype, name=f"ff_{kind}")(seen)
            x = join(rows, height, width, self.window)
        return x


class SquareAttention(nn.Module):
    """Squares [R, L, C] over squares [R, L, C], with a learned bias for every relative position."""

    heads: int
    window: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, other: Array) -> Array:
        width = x.shape[-1]

        def project(name: str, y: Array) -> Array:
            y = dense(width, name=name, dtype=self.dtype, bias=False)(y)
            return y.reshape(*y.shape[:-1], self.heads, -1)

        q, k, v = project("to_q", x), project("to_k", other), project("to_v", other)
        shape = ((2 * self.window - 1) ** 2, self.heads)
        table = self.param("rel_pos_bias", nn.initializers.normal(0.02), shape, jnp.float32)
        bias = table[relative_positions(self.window)].transpose(2, 0, 1)[None]
        out = attend_biased(q, k, v, bias).reshape(x.shape)
        return dense(width, name="to_out", dtype=self.dtype, bias=False)(out)


class FeedForward(nn.Module):
    """Linear, exact gelu, linear: [..., C] -> [..., C]."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = dense(EXPANSION * x.shape[-1], name="net_0", dtype=self.dtype)(x)
        y = nn.gelu(y, approximate=False)
        return dense(x.shape[-1], name="net_3", dtype=self.dtype)(y)


class MBConv(nn.Module):
    """Inverted residual convolution with squeeze and excitation: [B, H, W, C'] -> [B, H, W, C].

    Public weights carry batch norms: `batch_norm` keeps them, with the statistics they were
    trained to, which never change here. Networks trained here normalise in groups.
    """

    features: int
    batch_norm: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        inner = EXPANSION * self.features

        def norm(name: str, y: Array) -> Array:
            if self.batch_norm:
                return StoredNorm(name=name)(y)
            return GroupNorm(math.gcd(32, y.shape[-1]), name=name)(y)

        gelu = functools.partial(nn.gelu, approximate=False)
        x = gelu(norm("net_1", conv(inner, 1, name="net_0", dtype=self.dtype)(x)))
        depthwise = nn.Conv(
            inner, (3, 3), padding=1, feature_group_count=inner, dtype=self.dtype, name="net_3"
        )
        x = gelu(norm("net_4", depthwise(x)))
        gate = x.mean(axis=(1, 2))
        gate = dense(inner // SHRINKAGE, name="gate_1", dtype=self.dtype, bias=False)(gate)
        gate = dense(inner, name="gate_3", dtype=self.dtype, bias=False)(nn.silu(gate))
        x = x * nn.sigmoid(gate)[:, None, None]
        return norm("net_8", conv(self.features, 1, name="net_7", dtype=self.dtype)(x))


class StoredNorm(nn.Module):
    """Batch normalisation by stored statistics: [..., C] -> [..., C]. They take no gradient."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, variance = self.param("mean", zeros, shape), self.param("var", ones, shape)
        mean, variance = jax.lax.stop_gradient((mean, variance))
        factor = scale.astype(jnp.float32) * jax.lax.rsqrt(variance.astype(jnp.float32) + self.eps)
        shift = bias - mean * factor
        lead = (1,) * (x.ndim - 1)
        out = x.astype(jnp.float32) * factor.reshape(*lead, -1) + shift.reshape(*lead, -1)
        return out.astype(x.dtype)


@functools.cache
def relative_positions(window: int) -> np.ndarray:
    """For each pair of tokens of a square, which entry of the bias table is theirs: [L, L]."""
    at = np.stack(np.meshgrid(*[np.arange(window)] * 2, indexing="ij"), -1).reshape(-1, 2)
    apart = at[:, None] - at[None] + window - 1
    return apart[..., 0] * (2 * window - 1) + apart[..., 1]
