"""The critic of GAN training: is each patch of a picture real? (PatchGAN, arXiv 1611.07004)"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from mv2_jax.nn.layers import Dtype, GroupNorm

SLOPE = 0.2


class PatchCritic(nn.Module):
    """Pictures [B, H, W, 3] in [-1, 1] -> a logit a patch, fp32 [B, h, w, 1]; above 0 is "real".

    `layers` halvings with 4x4 kernels, widths doubling from `width` up to eight times it, then two
    convolutions at full stride. The public one has batch norms; groups here, whose statistics do
    not mix the real and the made pictures of a batch.
    """

    width: int = 64
    layers: int = 3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.astype(self.dtype)
        for i in range(self.layers + 1):
            width = self.width * 2 ** min(i, 3)
            stride = 2 if i < self.layers else 1
            x = self._conv(width, stride, f"conv_{i}", bias=i == 0)(x)
            if i:
                x = GroupNorm(min(16, width // 4), name=f"norm_{i}")(x)
            x = nn.leaky_relu(x, SLOPE)
        return self._conv(1, 1, f"conv_{self.layers + 1}")(x).astype(jnp.float32)

    def _conv(self, width: int, stride: int, name: str, bias: bool = True) -> nn.Conv:
        return nn.Conv(width, (4, 4), stride, padding=1, use_bias=bias, dtype=self.dtype, name=name)
