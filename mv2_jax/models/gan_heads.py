"""The small networks at the end of the GAN interpolator: what EDSC works with.

Widths, depth and number of the heads are VQ-FIGAN's (LDMVFI, arXiv 2303.09508), after EDSC's.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from mv2_jax.config import GANVFIConfig
from mv2_jax.nn.edsc import Taps
from mv2_jax.nn.layers import Dtype, conv, depth_to_space


class Synthesis(NamedTuple):
    """EDSC's numbers for both neighbours, and what is added at full size.

    `residual` [P, H, W, 3] is added; `trust` [P, H, W, 1], where the config is steady, is by how
    much more (or less) than once the light model's frame is added, and else None.
    """

    first: Taps
    second: Taps
    residual: Array
    trust: Array | None


class Heads(nn.Module):
    """Features [P, h, w, C] -> `Synthesis`. The masks of the two sides add up to one."""

    cfg: GANVFIConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Synthesis:
        cfg = self.cfg
        taps, scale = cfg.taps, cfg.head_scale
        # Untouched, a steady network adds nothing to the light model's frame: its vertical kernels
        # are zero. Without that frame it begins as the mean of the neighbours.
        centre = centred(taps)
        still = jax.nn.initializers.zeros if cfg.steady else centre

        def head(name: str, outputs: int, bias=jax.nn.initializers.zeros) -> Array:
            return Head(outputs, cfg.head_widths, cfg.head_slope, bias, self.dtype, name=name)(x)

        mask = nn.sigmoid(head("mask", taps**2))
        sides = [
            Taps(
                rows=head(f"rows_{side}", taps**2),
                columns=head(f"columns_{side}", taps**2),
                vertical=head(f"vertical_{side}", taps, still),
                horizontal=head(f"horizontal_{side}", taps, centre),
                mask=mask if side == 1 else 1 - mask,
            )
            for side in (1, 2)
        ]
        residual = depth_to_space(head("residual", 3 * scale**2), scale)
        trust = depth_to_space(head("trust", scale**2), scale) if cfg.steady else None
        return Synthesis(*sides, residual, trust)


class Head(nn.Module):
    """Four 3x3 convolutions with rectifiers between: [P, h, w, C] -> fp32 [P, h, w, outputs].

    The rectifiers have a slope of `slope` below zero. The last convolution starts with a kernel of
    zeros, so at first its output is its bias.
    """

    outputs: int
    widths: tuple[int, ...]
    slope: float
    bias: jax.nn.initializers.Initializer
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # Numbered as in the public code, where rectifiers take the odd numbers.
        for i, width in enumerate((*self.widths, self.outputs)):
            x = conv(width, name=f"conv_{2 * i}", dtype=self.dtype)(x)
            x = nn.leaky_relu(x, self.slope)
        last = nn.Conv(
            self.outputs,
            (3, 3),
            padding=1,
            dtype=self.dtype,
            kernel_init=jax.nn.initializers.zeros,
            bias_init=self.bias,
            name=f"conv_{2 * len(self.widths) + 2}",
        )
        return last(x).astype(jnp.float32)


def centred(taps: int) -> jax.nn.initializers.Initializer:
    """Starts a kernel of `taps` numbers as one in the middle among zeros."""

    def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        del key
        return jnp.zeros(shape, dtype).at[taps // 2].set(1)

    return init
