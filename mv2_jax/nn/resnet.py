"""Residual convolution blocks and the changes of resolution between them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mv2_jax import shards
from mv2_jax.nn.layers import Dtype, GroupNorm, conv, dense


class ResnetBlock(nn.Module):
    """x [B, H, W, C] (+ time embedding [B, E]) -> [B, H, W, features].

    Norm, SiLU, conv twice, the time embedding added between, a 1x1 shortcut where widths differ.
    The second convolution starts at zero, as in the original diffusion UNets; a VAE starts it
    at random (`zero=False`), for there is no noise to fall back on. The norms take `frames` rows
    of B together.
    """

    features: int
    groups: int = 32
    eps: float = 1e-5
    dtype: Dtype = jnp.float32
    zero: bool = True
    frames: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array | None = None) -> jax.Array:
        parts = shards.parts(self.features, self.groups)
        inner, summed = self.features // parts, parts > 1
        h = nn.silu(GroupNorm(self.groups, self.eps, self.frames, name="norm1")(x))
        h = conv(inner, name="conv1", dtype=self.dtype)(h)
        if temb is not None:
            shift = dense(inner, name="time_emb_proj", dtype=self.dtype)(nn.silu(temb))
            h = h + shift[:, None, None]
        h = nn.silu(GroupNorm(self.groups // parts, self.eps, self.frames, name="norm2")(h))
        h = conv(self.features, name="conv2", dtype=self.dtype, zero=self.zero, summed=summed)(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, name="conv_shortcut", dtype=self.dtype)(x)
        return x.astype(h.dtype) + h


class Downsample(nn.Module):
    """A stride-2 convolution. `padding` is (1, 1) in UNets and (0, 1) in the VAE's encoder."""

    features: int
    padding: tuple[int, int] = (1, 1)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return conv(self.features, 3, 2, self.padding, name="conv", dtype=self.dtype)(x)


class Upsample(nn.Module):
    """Nearest x2, cropped to `size` (the skip's plane, which may be odd), then a convolution."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
        b, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
        x = x.reshape(b, 2 * h, 2 * w, c)
        if size is not None:
            x = x[:, : size[0], : size[1]]
        return conv(self.features, name="conv", dtype=self.dtype)(x)
