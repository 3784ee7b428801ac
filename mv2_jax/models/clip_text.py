"""CLIP's text encoder (arXiv 2103.00020), at any size from the toybox's to OpenCLIP bigG.

Parameters are named as in transformers' CLIPTextModel without the `text_model.` prefix.
Shape letters: B batch, L tokens, C width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mv2_jax.config import TextConfig
from mv2_jax.models.clip import Encoder
from mv2_jax.nn.layers import Dtype, Embed, LayerNorm, dense

_LEGACY_EOS = 2


class TextOutput(NamedTuple):
    """What a text encoder knows of a prompt.

    hidden_states: layers + 1 arrays [B, L, C]: the embeddings, then each layer's output, none
        of them through the final norm.
    last: [B, L, C], the last of them through the final norm.
    pooled: [B, C], `last` at the end token.
    projected: [B, P], `pooled` through the projection; None where the config has none.
    """

    hidden_states: tuple[jax.Array, ...]
    last: jax.Array
    pooled: jax.Array
    projected: jax.Array | None


class TextEmbeddings(nn.Module):
    """Token plus position embeddings: ids [B, L] -> [B, L, C]."""

    cfg: TextConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        cfg = self.cfg
        length = ids.shape[-1]
        if length > cfg.max_length:
            raise ValueError(
                f"{length} tokens are more than this text encoder's {cfg.max_length}: encode the "
                f"prompt with max_length={cfg.max_length}"
            )

        def embed(rows: int, std: float, name: str) -> Embed:
            init = nn.initializers.normal(std)  # CLIP's own scales
            return Embed(rows, cfg.width, dtype=self.dtype, embedding_init=init, name=name)

        tokens = embed(cfg.vocab_size, 0.02, "token_embedding")(ids)
        positions = embed(cfg.max_length, 0.01, "position_embedding")(jnp.arange(length))
        return tokens + positions[None]


def end_positions(ids: jax.Array, eos_token_id: int) -> jax.Array:
    """Where each row of ids [B, L] ends -> [B]: its first end token.

    `eos_token_id` 2 is what configs of CLIP's first conversions say, wrongly; it stands for the
    older rule, the largest id (the end token is the vocabulary's last). A row without an end
    token gives 0, as in transformers.
    """
    marks = ids if eos_token_id == _LEGACY_EOS else (ids == eos_token_id).astype(jnp.int32)
    return jnp.argmax(marks, axis=-1)


class TextEncoder(nn.Module):
    """ids int32 [B, L] -> `TextOutput`. L is at most `cfg.max_length`.

    Attention is causal and looks at padding too, as in CLIP: what follows the end token cannot
    reach it.

    Raises:
        ValueError: more tokens than positions, or an unknown activation.
    """

    cfg: TextConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array) -> TextOutput:
        cfg = self.cfg
        x = TextEmbeddings(cfg, self.dtype, name="embeddings")(ids)
        states = Encoder(cfg, causal=True, dtype=self.dtype, name="encoder")(x)
        last = LayerNorm(cfg.layer_norm_eps, name="final_layer_norm")(states[-1])
        ends = end_positions(ids, cfg.eos_token_id)
        pooled = jnp.take_along_axis(last, ends[:, None, None], axis=1)[:, 0]
        projected = None
        if cfg.projection is not None:
            project = dense(cfg.projection, name="text_projection", dtype=self.dtype, bias=False)
            projected = project(pooled)
        return TextOutput(states, last, pooled, projected)


def context(
    params: dict[str, Any],
    cfg: TextConfig,
    output: TextOutput,
    clip_skip: int = 0,
    *,
    final_norm: bool = True,
) -> jax.Array:
    """The states [B, L, C] that a UNet's cross-attention reads.

    Args:
        params: the encoder's parameters (its final norm is applied again).
        cfg: the encoder's config.
        output: the encoder's answer.
        clip_skip: layers left out at the end, in diffusers' counting (its 1 is the web UI's 2).
        final_norm: apply the final norm, as Stable Diffusion 1.x does after skipping too.
            SDXL reads `clip_skip=1, final_norm=False` of both its encoders.

    Raises:
        ValueError: `clip_skip` outside 0..layers.
    """
    if not 0 <= clip_skip <= cfg.layers:
        raise ValueError(f"clip_skip is {clip_skip}, but the text encoder has {cfg.layers} layers")
    if clip_skip == 0 and final_norm:
        return output.last
    states = output.hidden_states[-(clip_skip + 1)]
    if not final_norm:
        return states
    return LayerNorm(cfg.layer_norm_eps).apply({"params": params["final_layer_norm"]}, states)
