"""ControlNet (arXiv 2302.05543): residuals for the UNet from an RGB condition.

Its body is the UNet's first half (`unet.encode`), without motion modules or image tokens; names
and numerics follow diffusers' ControlNetModel.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mv2_jax.config import ControlNetConfig
from mv2_jax.models.clip import MLP, SelfAttention
from mv2_jax.models.unet import embed_time, encode
from mv2_jax.nn.layers import (
    Dtype,
    Embed,
    EmbeddingMLP,
    LayerNorm,
    conv,
    dense,
    sinusoid,
    space_to_depth,
)
from mv2_jax.nn.transformer import Context


class ConditionEmbedding(nn.Module):
    """RGB [B, H, W, 3] in [0, 1] -> [B, H/f, W/f, features], f the config's condition_factor."""

    cfg: ControlNetConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        widths = self.cfg.condition_channels
        x = space_to_depth(x.astype(self.dtype), self.cfg.condition_patch)
        x = nn.silu(conv(widths[0], name="conv_in", dtype=self.dtype)(x))
        for i in range(len(widths) - 1):
            x = nn.silu(conv(widths[i], name=f"blocks_{2 * i}", dtype=self.dtype)(x))
            x = conv(widths[i + 1], 3, 2, name=f"blocks_{2 * i + 1}", dtype=self.dtype)(x)
            x = nn.silu(x)
        # The original starts this layer at zero too. The residuals' own zeros already make the
        # network the identity at first, and with both the picture stays unseen until they grow.
        return conv(self.cfg.unet.channels[0], name="conv_out", dtype=self.dtype)(x)


class TypeLayer(nn.Module):
    """One layer of ControlNet Union's transformer, on tokens [N, C] that do not see each other.

    The published network has its tokens' axes swapped, so that attention runs over the samples of a
    batch. With one picture, as it is published to be used, that is over nothing else: what is
    computed here, whatever the batch. Numerics follow diffusers' ControlNetUnionModel.
    """

    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x[:, None]
        attention = SelfAttention(1, causal=False, dtype=self.dtype, name="self_attn")
        x = x + attention(LayerNorm(name="layer_norm1")(x))
        mlp = MLP(4 * x.shape[-1], "quick_gelu", self.dtype, name="mlp")
        return (x + mlp(LayerNorm(name="layer_norm2")(x)))[:, 0]


def outlets(
    dtype: Dtype,
    skips: tuple[jax.Array, ...],
    middle: jax.Array | None,
    scale: jax.Array | float,
    frames: int,
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
    """The residuals that a body's states [B*T, h, w, c] give, each through a 1x1 convolution.

    `scale` (scalar, [B] or [B, T]) multiplies them. No middle gives none. Call it inside a compact
    module; it owns `controlnet_down_blocks_*` and `controlnet_mid_block` there.
    """

    def residual(name: str, state: jax.Array) -> jax.Array:
        out = conv(state.shape[-1], 1, name=name, dtype=dtype, zero=True)(state)
        factor = jnp.asarray(scale, out.dtype)
        if factor.ndim:
            factor = jnp.repeat(factor, frames) if factor.ndim == 1 else factor.reshape(-1)
            factor = factor[:, None, None, None]
        return out * factor

    skips = tuple(residual(f"controlnet_down_blocks_{i}", s) for i, s in enumerate(skips))
    return skips, None if middle is None else residual("controlnet_mid_block", middle)


class ControlNet(nn.Module):
    """x [B, T, H, W, C], t [B], context, condition -> (skip residuals, mid residual).

    `condition` is [B, H*f, W*f, 3] in [0, 1], one picture for all frames of a sample, or
    [B, T, H*f, W*f, 3], one a frame. `scale` (scalar, [B] or [B, T]) multiplies every residual.
    Residuals are [B*T, h, w, c] ([B*T, 1, 1, c] where they are pooled), outermost first, as `UNet`
    takes them: of a step that runs the outer part alone (`context.branch`) those of its skips, and
    None in the middle. They are zero at initialisation. `kind` [B] int32, for ControlNet Union
    alone: what its pictures show, an index into `numbers.CONTROL_TYPES`.
    """

    cfg: ControlNetConfig
    dtype: Dtype = jnp.float32
    remat: str | bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        context: Context,
        condition: jax.Array,
        scale: jax.Array | float = 1.0,
        kind: jax.Array | None = None,
    ) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
        cfg, unet, dtype = self.cfg, self.cfg.unet, self.dtype
        if unet.motion is not None or unet.image_tokens:
            raise ValueError("a ControlNet's body has neither motion modules nor image tokens")
        b, frames, h, w, _ = x.shape
        if condition.shape[-3:-1] != (h * cfg.condition_factor, w * cfg.condition_factor):
            raise ValueError(
                f"the condition is {condition.shape[-3]}x{condition.shape[-2]} pixels; for "
                f"{h}x{w} latents it must be {h * cfg.condition_factor}x{w * cfg.condition_factor}"
            )
        temb = embed_time(unet, dtype, t, context, frames)
        hint = ConditionEmbedding(cfg, dtype, name="controlnet_cond_embedding")(
            condition.reshape(-1, *condition.shape[-3:])
        )
        if cfg.types:
            if kind is None:
                raise ValueError("a ControlNet Union needs the kind of its pictures, [B]")
            temb = temb + jnp.repeat(self.told(kind), frames, axis=0)
            hint = hint + self.bias(hint, jnp.repeat(kind, hint.shape[0] // b))
        # One picture for all frames is embedded once and then shared, not embedded T times.
        hint = jnp.repeat(hint, b * frames // hint.shape[0], axis=0)
        y = x.reshape(b * frames, h, w, -1).astype(dtype)
        y = conv(unet.channels[0], name="conv_in", dtype=dtype)(y) + hint
        middle, skips = encode(unet, dtype, y, temb, context, self.remat)
        skips, middle = outlets(dtype, skips, middle, scale, frames)
        if not cfg.global_pool:
            return skips, middle
        return jax.tree.map(over_plane, (skips, middle))

    def told(self, kind: jax.Array) -> jax.Array:
        """Kinds [B] -> what they add to the time embedding, [B, 4 * channels[0]]."""
        unet = self.cfg.unet
        flags = sinusoid(jax.nn.one_hot(kind, self.cfg.types), unet.size_ids_width)
        width = 4 * unet.channels[0]
        embed = EmbeddingMLP(width, self.dtype, name="control_add_embedding")
        return embed(flags.reshape(kind.shape[0], -1))

    def bias(self, hint: jax.Array, kind: jax.Array) -> jax.Array:
        """Embedded pictures [N, h, w, C] and their kinds [N] -> what is added to them,
        [N, 1, 1, C]."""
        width = hint.shape[-1]
        kinds = Embed(self.cfg.types, width, name="task_embedding")
        x = (hint.astype(jnp.float32).mean((1, 2)) + kinds(kind)).astype(self.dtype)
        for i in range(self.cfg.type_layers):
            x = TypeLayer(self.dtype, name=f"transformer_layes_{i}")(x)
        x = dense(width, name="spatial_ch_projs", dtype=self.dtype, zero=True)(x)
        return x[:, None, None]


def over_plane(residual: jax.Array) -> jax.Array:
    """A residual [B*T, h, w, c] averaged over its plane: [B*T, 1, 1, c]."""
    return residual.astype(jnp.float32).mean((1, 2), keepdims=True).astype(residual.dtype)
