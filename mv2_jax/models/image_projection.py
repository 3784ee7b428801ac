"""From a vision encoder's answer to context tokens: IP-Adapter (arXiv 2308.06721) and its Plus.

Parameters are named as in diffusers' ImageProjection, IPAdapterPlusImageProjection and
IPAdapterFullImageProjection.
Shape letters: B batch, L tokens, C width, N heads, D head width, Q learned queries.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mv2_jax import shards
from mv2_jax.config import ImageProjectionConfig
from mv2_jax.lookup import one_of
from mv2_jax.models.clip_vision import VisionOutput
from mv2_jax.nn.attention import attend
from mv2_jax.nn.layers import Dtype, LayerNorm, dense

KINDS = ("linear", "resampler", "full")


class ResamplerAttention(nn.Module):
    """Queries [B, Q, C] look at image tokens and themselves [B, L + Q, C] -> [B, Q, C]."""

    heads: int
    head_width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, queries: Float[Array, "B Q C"], source: Float[Array, "B LQ C"]
    ) -> Float[Array, "B Q C"]:
        parts = shards.parts(self.heads)
        heads, width = self.heads // parts, self.heads * self.head_width // parts

        def project(name: str, x: Array) -> Array:
            x = dense(width, name=name, dtype=self.dtype, bias=False)(x)
            return x.reshape(*x.shape[:-1], heads, self.head_width)

        out = attend(project("to_q", queries), project("to_k", source), project("to_v", source))
        out, last = out.reshape(*out.shape[:-2], width), queries.shape[-1]
        return dense(last, name="to_out_0", dtype=self.dtype, bias=False, summed=parts > 1)(out)


class MLP(nn.Module):
    """Two linear layers, exact gelu between: [B, L, C] -> [B, L, out], of C where `out` is 0."""

    width: int
    dtype: Dtype = jnp.float32
    out: int = 0
    bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"]) -> Float[Array, "B L out"]:
        # Named as diffusers' FeedForward, whose first step is a module that holds its linear.
        parts, last = shards.parts(self.width), self.out or x.shape[-1]
        hidden = _Inner(self.width // parts, self.dtype, self.bias, name="net_0")(x)
        options = {"dtype": self.dtype, "bias": self.bias, "summed": parts > 1}
        return dense(last, name="net_2", **options)(hidden)


class _Inner(nn.Module):
    width: int
    dtype: Dtype
    bias: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = dense(self.width, name="proj", dtype=self.dtype, bias=self.bias)(x)
        return nn.gelu(x, approximate=False)


class ResamplerLayer(nn.Module):
    """One step of the resampler: image tokens [B, L, C], queries [B, Q, C] -> queries."""

    cfg: ImageProjectionConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L C"], queries: Float[Array, "B Q C"]
    ) -> Float[Array, "B Q C"]:
        cfg = self.cfg
        normed = LayerNorm(name="ln1")(queries)
        source = jnp.concatenate([LayerNorm(name="ln0")(x), normed], axis=1)
        attention = ResamplerAttention(cfg.heads, cfg.head_width, self.dtype, name="attn")
        queries = queries + attention(normed, source)
        normed = LayerNorm(name="ff_0")(queries)
        return queries + MLP(cfg.mlp_ratio * cfg.width, self.dtype, name="ff_1")(normed)


class ImageProjection(nn.Module):
    """Image features -> context tokens [B, tokens, out_width].

    kind "linear": `image_embeds` [B, in_width]; one linear layer, then a norm over each token.
    kind "resampler": hidden states [B, L, in_width]; learned queries, `depth` layers.
    kind "full": hidden states [B, L, in_width], each made a token: [B, L, out_width].
    `features` picks the right part of a vision encoder's answer.

    Raises:
        ValueError: an unknown kind, or features of the wrong rank.
    """

    cfg: ImageProjectionConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, " B *L C"]) -> Float[Array, "B tokens out"]:
        cfg = self.cfg
        one_of(cfg.kind, KINDS, "image projection")
        rank = 2 if cfg.kind == "linear" else 3
        if image.ndim != rank or image.shape[-1] != cfg.in_width:
            wanted = "[B, {}]" if rank == 2 else "[B, L, {}]"
            raise ValueError(
                f"the {cfg.kind} image projection takes {wanted.format(cfg.in_width)}, "
                f"not {list(image.shape)}: see mv2_jax.models.image_projection.features"
            )
        image = image.astype(self.dtype)
        make = {"linear": self._linear, "resampler": self._resample, "full": self._full}
        return make[cfg.kind](image)

    def _linear(self, image: Float[Array, "B C"]) -> Float[Array, "B tokens out"]:
        cfg = self.cfg
        tokens = dense(cfg.tokens * cfg.out_width, name="image_embeds", dtype=self.dtype)(image)
        return LayerNorm(name="norm")(tokens.reshape(-1, cfg.tokens, cfg.out_width))

    def _full(self, image: Float[Array, "B L C"]) -> Float[Array, "B L out"]:
        mlp = MLP(self.cfg.in_width, self.dtype, self.cfg.out_width, bias=True, name="ff")
        return LayerNorm(name="norm")(mlp(image))

    def _resample(self, image: Float[Array, "B L C"]) -> Float[Array, "B tokens out"]:
        cfg = self.cfg
        shape = (1, cfg.tokens, cfg.width)
        queries = self.param("latents", nn.initializers.normal(cfg.width**-0.5), shape)
        queries = jnp.broadcast_to(queries.astype(self.dtype), (image.shape[0], *shape[1:]))
        x = dense(cfg.width, name="proj_in", dtype=self.dtype)(image)
        for i in range(cfg.depth):
            queries = ResamplerLayer(cfg, self.dtype, name=f"layers_{i}")(x, queries)
        out = dense(cfg.out_width, name="proj_out", dtype=self.dtype)(queries)
        return LayerNorm(name="norm_out")(out)


def features(kind: str, output: VisionOutput) -> Array:
    """The part of a vision encoder's answer that a projection of this kind reads.

    "linear": the projected class token [B, P]; "resampler" and "full": the last states but one
    [B, L, C], without the final norm.

    Raises:
        ValueError: an unknown kind, or "linear" on an encoder without a projection.
    """
    one_of(kind, KINDS, "image projection")
    if kind != "linear":
        return output.hidden_states[-2]
    if output.image_embeds is None:
        raise ValueError(
            "a linear image projection reads image_embeds, but this vision encoder has no "
            "projection: set VisionConfig.projection"
        )
    return output.image_embeds


def null_features(kind: str, encode: Callable[[Array], VisionOutput], pixels: Array) -> Array:
    """Features that stand for "no image", for guidance and for dropping the image in training.

    IP-Adapter's rules: zeros for "linear"; for the others what the encoder says to an image of
    zeros (in CLIP's normalised space, so a grey-brown plane).

    Args:
        kind: of the projection.
        encode: the vision encoder, from pixels to its output.
        pixels: preprocessed [B, H, W, 3]; only their shape and type matter.

    Returns:
        Features of one image, [1, ...]; broadcast them over the batch.
    """
    blank = jnp.zeros_like(pixels[:1])
    if kind == "linear":
        shape = jax.eval_shape(lambda x: features(kind, encode(x)), blank)
        return jnp.zeros(shape.shape, shape.dtype)
    return features(kind, encode(blank))
