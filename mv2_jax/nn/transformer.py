"""The spatial transformer of Stable Diffusion: self-attention, cross-attention, feed-forward."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from mv2_jax import shards
from mv2_jax.nn.attention import Attention
from mv2_jax.nn.layers import Dtype, FeedForward, GroupNorm, LayerNorm, dense


@flax.struct.dataclass
class Context:
    """What a network reads beside its noisy latents and their time; B samples, of any frames.

    text: [B, L, Cc] states of the text encoder, for cross-attention, or by frame [B, T, L, Cc].
    image: [B, Li, Cc] tokens of pictures, for a cross-attention of their own (`image_tokens`),
        and how much they count, image_scale: scalar, [B] or by frame [B, T]; 0 switches them off.
    pooled [B, P] (or [B, T, P]), size_ids [B, 6]: SDXL's, which join the time embedding.
    residuals: (skips, mid), added to a UNet's states: each [B * T, h, w, c] (or [B * T, 1, 1, c]).
    motion_scale: how much motion modules' frames look at one another, [B] or by frame [B, T] of the
        whole clip; None: as they were trained.
    more: whatever conditions and backbones of one's own agree on.
    branch: of a step that runs a network's outer part alone, the skip connection where that ends
        (`models.unet.UNet`): residuals of skips beyond it, and of the middle, are not asked for.
    """

    text: jax.Array | None = None
    image: jax.Array | None = None
    image_scale: jax.Array | float = 1.0
    pooled: jax.Array | None = None
    size_ids: jax.Array | None = None
    residuals: tuple[tuple[jax.Array, ...], jax.Array] | None = None
    motion_scale: jax.Array | None = None
    more: dict[str, Any] = flax.struct.field(default_factory=dict)
    branch: int | None = flax.struct.field(pytree_node=False, default=None)

    def read(self) -> tuple[jax.Array, jax.Array | None, jax.Array | float]:
        """What cross-attention reads, text, image and its scale: a row for each sample, or for each
        frame [B * T, ...] where texts differ by frame."""
        text, image, scale = self.text, self.image, self.image_scale
        if text.ndim == 3:
            return text, image, scale
        frames = text.shape[1]
        image = None if image is None else jnp.repeat(image, frames, axis=0)
        if jnp.ndim(scale):
            scale = jnp.repeat(scale, frames) if scale.ndim == 1 else scale.reshape(-1)
        return text.reshape(-1, *text.shape[2:]), image, scale


class TransformerLayer(nn.Module):
    """x [B*T, L, C] -> the same: attn1 (self), attn2 (cross), ff, each residual after a norm.

    `length`: of a plane's so many tokens x holds this device's.
    """

    heads: int
    image_tokens: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, context: Context, length: int) -> jax.Array:
        frames, here, width = x.shape
        text, *image = context.read()
        samples = text.shape[0]
        y = LayerNorm(name="norm1")(x)
        x = x + Attention(self.heads, self.dtype, name="attn1")(y, length=length)
        # Cross-attention treats every query alone: all frames of a sample can query one set of
        # keys, so keys and values are computed once a sample and not once a frame.
        y = LayerNorm(name="norm2")(x).reshape(samples, frames // samples * here, width)
        y = Attention(self.heads, self.dtype, image_tokens=self.image_tokens, name="attn2")(
            y, text, *image
        )
        x = x + y.reshape(frames, here, width)
        return x + FeedForward(dtype=self.dtype, name="ff")(LayerNorm(name="norm3")(x))


class SpatialTransformer(nn.Module):
    """x [B*T, H, W, C] -> the same: norm, projection, `layers` layers, projection, residual.

    SD1.5 stores the projections as 1x1 convolutions, SDXL as linear layers; here both are linear,
    and the converter squeezes the former.
    """

    heads: int
    layers: int
    groups: int
    image_tokens: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        b, h, w, c = x.shape
        y = GroupNorm(self.groups, 1e-6, name="norm")(x).reshape(b, h * w, c)
        tokens = shards.layout().tokens
        y = shards.share(y, tokens, 1)
        y = dense(c, name="proj_in", dtype=self.dtype)(y)
        for k in range(self.layers):
            y = TransformerLayer(
                self.heads, self.image_tokens, self.dtype, name=f"transformer_blocks_{k}"
            )(y, context, h * w)
        y = dense(c, name="proj_out", dtype=self.dtype, zero=True)(y)
        return x + shards.join(y, tokens, 1, h * w).reshape(b, h, w, c)
