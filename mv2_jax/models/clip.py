"""What CLIP's text and vision encoders share: the pre-norm transformer (arXiv 2103.00020).

Parameters are named as in transformers' CLIP (`encoder/layers_3/self_attn/q_proj/kernel`).
Shape letters: B batch, L tokens, C width, N heads, D head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mv2_jax import shards
from mv2_jax.config import TextConfig, VisionConfig
from mv2_jax.lookup import one_of
from mv2_jax.nn.attention import attend
from mv2_jax.nn.layers import Dtype, LayerNorm, dense


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * nn.sigmoid(1.702 * x)


def _gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=False)


_ACTIVATIONS = {"quick_gelu": _quick_gelu, "gelu": _gelu}


class SelfAttention(nn.Module):
    """Multi-head self-attention of x [B, L, C] -> [B, L, C], causal for text."""

    heads: int
    causal: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f"width {width} does not divide into {self.heads} heads")
        parts = shards.parts(self.heads)
        shape = (*x.shape[:-1], self.heads // parts, width // self.heads)
        q, k, v = (
            dense(width // parts, name=f"{letter}_proj", dtype=self.dtype)(x).reshape(shape)
            for letter in "qkv"
        )
        out = attend(q, k, v, causal=self.causal).reshape(*x.shape[:-1], width // parts)
        return dense(width, name="out_proj", dtype=self.dtype, summed=parts > 1)(out)


class MLP(nn.Module):
    """Two linear layers with the config's activation between: [B, L, C] -> [B, L, C]."""

    width: int
    activation: str
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one_of(self.activation, _ACTIVATIONS, "CLIP activation")
        parts = shards.parts(self.width)
        hidden = dense(self.width // parts, name="fc1", dtype=self.dtype)(x)
        hidden = _ACTIVATIONS[self.activation](hidden)
        return dense(x.shape[-1], name="fc2", dtype=self.dtype, summed=parts > 1)(hidden)


class EncoderLayer(nn.Module):
    """One pre-norm transformer layer: [B, L, C] -> [B, L, C]."""

    cfg: TextConfig | VisionConfig
    causal: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        normed = LayerNorm(cfg.layer_norm_eps, name="layer_norm1")(x)
        x = x + SelfAttention(cfg.heads, self.causal, self.dtype, name="self_attn")(normed)
        normed = LayerNorm(cfg.layer_norm_eps, name="layer_norm2")(x)
        return x + MLP(cfg.mlp_width, cfg.activation, self.dtype, name="mlp")(normed)


class Encoder(nn.Module):
    """All layers: embeddings [B, L, C] -> the embeddings and every layer's output, in order."""

    cfg: TextConfig | VisionConfig
    causal: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        states = [x]
        for i in range(self.cfg.layers):
            layer = EncoderLayer(self.cfg, self.causal, self.dtype, name=f"layers_{i}")
            states.append(layer(states[-1]))
        return tuple(states)
