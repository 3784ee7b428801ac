"""The leaky rectifier whose slope is learned, channel by channel (PReLU, arXiv 1502.01852)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mv2_jax.nn.layers import Dtype, conv


class PReLU(nn.Module):
    """x where positive, `alpha` x elsewhere: [..., C] -> [..., C], one `alpha` a channel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        alpha = self.param("alpha", nn.initializers.constant(0.25), (x.shape[-1],), jnp.float32)
        alpha = alpha.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        return jnp.where(x >= 0, x, alpha * x)


class ConvPReLU(nn.Module):
    """A 3x3 convolution, then PReLU: [B, H, W, C] -> [B, H/stride, W/stride, features]."""

    features: int
    stride: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = conv(self.features, 3, self.stride, name="conv", dtype=self.dtype)(x)
        return PReLU(name="prelu")(x)
