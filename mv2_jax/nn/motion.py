"""Motion modules: AnimateDiff's temporal transformers (arXiv 2307.04725)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from mv2_jax import exchanges, shards
from mv2_jax.config import MotionConfig
from mv2_jax.nn.attention import Attention
from mv2_jax.nn.layers import Declared, Dtype, FeedForward, GroupNorm, LayerNorm, dense


def sinusoid_table(length: int, width: int) -> jax.Array:
    """The original's positional encoding [length, width]: sine and cosine interleaved, fp32."""
    positions = jnp.arange(length, dtype=jnp.float32)[:, None]
    rates = jnp.exp(jnp.arange(0, width, 2, dtype=jnp.float32) * (-math.log(10000.0) / width))
    angles = positions * rates[None]
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(length, -1)[:, :width]


def frames_together(scope: str, frames: int) -> int:
    """How many of a clip's `frames` a group norm of this scope, "frame" or "clip", takes at once.

    Raises:
        ValueError: another scope.
    """
    if scope not in ("frame", "clip"):
        raise ValueError(f"a norm's scope is 'frame' or 'clip', not {scope!r}")
    return frames if scope == "clip" else 1


class TemporalAttention(Declared, nn.Module):
    """Self-attention over frames: x [P, T, C], positions as batch -> the same.

    The positional encoding is a stored parameter, because published modules carry their own and
    some retrained it; it is added after the norm, before the projections. `scale` [P, T] or [P, 1]
    multiplies keys, and so how much frames look at one another's differences (AnimateDiff-Evolved's
    motion scale).
    """

    heads: int
    max_frames: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        frames, width = x.shape[1:]
        if frames > self.max_frames:
            raise ValueError(
                f"{frames} frames, but this motion module knows {self.max_frames} positions"
            )
        shape = (self.max_frames, width)
        table = self.param("pe", lambda _, shape: sinusoid_table(*shape), shape)
        x = x + table[None, :frames].astype(x.dtype)
        return Attention(self.heads, self.dtype, name="attn")(x, key_scale=scale)


class MotionLayer(nn.Module):
    """x [P, T, C] -> the same: `attentions` temporal self-attentions and a feed-forward."""

    cfg: MotionConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        cfg = self.cfg
        for k in range(1, cfg.attentions + 1):
            y = LayerNorm(name=f"norm{k}")(x)
            attention = TemporalAttention(cfg.heads, cfg.max_frames, self.dtype, name=f"attn{k}")
            x = x + attention(y, scale)
        y = LayerNorm(name=f"norm{cfg.attentions + 1}")(x)
        return x + FeedForward(cfg.mlp_ratio, self.dtype, name="ff")(y)


class MotionModule(nn.Module):
    """x [B, T, H, W, C] -> the same. Its output projection starts at zero: then the identity.

    `scale`, [B] or by frame [B, T] of the whole clip: see `TemporalAttention`.
    """

    cfg: MotionConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        b, t, h, w, c = x.shape
        together = frames_together(self.cfg.norm_scope, shards.frames(t))
        y = x.reshape(b * t, h, w, c)
        y = GroupNorm(self.cfg.norm_groups, 1e-6, together, name="norm")(y)
        # Attention over time sees all frames of a position.
        y = exchanges.to_positions(y.reshape(b, t, h * w, c))
        frames, positions = y.shape[1:3]
        y = y.transpose(0, 2, 1, 3).reshape(b * positions, frames, c)
        y = dense(c, name="proj_in", dtype=self.dtype)(y)
        if scale is not None:
            scale = jnp.repeat(scale.reshape(b, -1), positions, axis=0)
        for k in range(self.cfg.layers):
            y = MotionLayer(self.cfg, self.dtype, name=f"transformer_blocks_{k}")(y, scale)
        y = dense(c, name="proj_out", dtype=self.dtype, zero=True)(y)
        y = y.reshape(b, positions, frames, c).transpose(0, 2, 1, 3)
        return x + exchanges.to_frames(y, h * w).reshape(x.shape)
