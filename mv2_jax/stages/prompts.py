"""From prompts' tokens to what a network reads of them: weights, any length, SDXL's two encoders.

With one text encoder that is Stable Diffusion's recipe, cross-attention alone; with two it is
SDXL's (arXiv 2307.01952): cross-attention reads the states of both before their last layers, and
the second's pooled text and the picture's sizes join the time embedding. T2I and the video stages
share all of it: a `cfg` here is the config of either, for its `text`, `text_2`, `stage`, `dtype`.

A weight w takes a token's state from the empty prompt's state at that place, w times as far as the
token itself is (ComfyUI's and compel's rule). The web UI's own, to scale the states and then bring
their mean back, divides by a mean that may be next to nothing. A prompt's rows are encoded each by
itself and laid end to end, as all of these tools do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from mv2_jax import shards
from mv2_jax.diffusion import keys as named
from mv2_jax.models import clip_text
from mv2_jax.text.emphasis import Marked

Ids = Any
"""Token ids [B, L], or `Marked`."""
Encode = Callable[[jax.Array], tuple[jax.Array, jax.Array | None]]


@flax.struct.dataclass
class Prompt:
    """What the network is told in words, leading axis B (or ways * B).

    text: [B, L, C] states that cross-attention reads.
    pooled [B, P], size_ids [B, 6]: SDXL's alone, see `size_ids`.
    """

    text: jax.Array
    pooled: jax.Array | None = None
    size_ids: jax.Array | None = None

    @property
    def added(self) -> dict[str, jax.Array | None]:
        """What of it joins the time embedding, as the networks take it."""
        return {"pooled": self.pooled, "size_ids": self.size_ids}


def check(cfg: Any) -> None:
    """Whether a stage's text encoders are those that its UNet wants.

    Raises:
        ValueError: a second text encoder without a place for it, or a place without one.
    """
    unet, second = cfg.stage.unet, cfg.text_2
    if (second is None) != (unet.pooled_width is None):
        raise ValueError("a UNet with pooled text needs a second text encoder, and only it")
    if second is not None and second.projection != unet.pooled_width:
        raise ValueError(
            f"the UNet takes pooled text of width {unet.pooled_width}, but the second text "
            f"encoder's projection is {second.projection}"
        )


def init(cfg: Any, key: jax.Array) -> dict[str, Any]:
    """Fresh parameters: {"text_encoder"}, and "text_encoder_2" where there are two."""
    ids = jnp.zeros((1, cfg.text.max_length), jnp.int32)
    encoders = {"text_encoder": cfg.text, "text_encoder_2": cfg.text_2}
    return {
        name: jax.jit(clip_text.TextEncoder(text).init)(named.fold(key, name), ids)["params"]
        for name, text in encoders.items()
        if text is not None
    }


def blank(cfg: Any, batch: int = 1) -> Prompt:
    """Zeros of a prompt's shapes, for initialising and tracing networks."""
    width = cfg.text.width + (cfg.text_2.width if cfg.text_2 else 0)
    text = jnp.zeros((batch, cfg.text.max_length, width))
    if cfg.text_2 is None:
        return Prompt(text)
    pooled = jnp.zeros((batch, cfg.text_2.projection))
    return Prompt(text, pooled, size_ids(batch, cfg.stage.size))


def size_ids(batch: int, size: tuple[int, int]) -> jax.Array:
    """SDXL's six numbers for uncropped pictures of `size` pixels -> [B, 6].

    Height and width before any resizing, top and left of the crop, height and width wanted.
    """
    numbers = jnp.asarray((*size, 0, 0, *size), jnp.float32)
    return jnp.broadcast_to(numbers[None], (batch, 6))


def of_batch(prompt: Prompt, cfg: Any, batch: dict[str, jax.Array]) -> Prompt:
    """The prompt of a training batch, for SDXL with the sizes of its pictures: the batch's own
    "size_ids" [B, 6], or the whole plane of its "latent" [B, ..., h, w, C]."""
    if cfg.text_2 is None:
        return prompt
    count, (height, width) = batch["latent"].shape[0], batch["latent"].shape[-3:-1]
    plane = (height * cfg.factor, width * cfg.factor)
    return prompt.replace(size_ids=batch.get("size_ids", size_ids(count, plane)))


def encode(params: dict[str, Any], cfg: Any, ids: Ids) -> Prompt:
    """Token ids [B, L] (or `Marked`) -> the prompt, for pictures of the stage's size."""
    if cfg.text_2 is None:
        return Prompt(states(partial(_encode_one, params, cfg), ids)[0])
    text, pooled = states(partial(_encode_two, params, cfg), ids)
    # SDXL was trained with zeros, not with an empty prompt's states, where text was dropped.
    said = clip_text.end_positions(first_rows(ids), cfg.text_2.eos_token_id)[:, None] > 1
    text, pooled = jnp.where(said[:, :, None], text, 0), jnp.where(said, pooled, 0)
    return Prompt(text, pooled, size_ids(text.shape[0], cfg.stage.size))


def _encode_one(params: dict[str, Any], cfg: Any, ids: jax.Array) -> tuple[jax.Array, None]:
    """Token ids [B, L] -> the states [B, L, C] of the one text encoder."""
    encoder = clip_text.TextEncoder(cfg.text, cfg.dtype)

    def run(own: dict[str, Any], ids: jax.Array) -> jax.Array:
        output = encoder.apply({"params": own}, ids)
        return clip_text.context(own, cfg.text, output, cfg.stage.clip_skip)

    return shards.over_samples(run, params["text_encoder"], ids), None


def _encode_two(params: dict[str, Any], cfg: Any, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Token ids [B, L] -> states [B, L, C] of both text encoders, and the second's pooled text."""
    encoders = {"text_encoder": cfg.text, "text_encoder_2": cfg.text_2}
    # The two tokenizers differ in padding alone: the first repeats the end, the second has zeros.
    ends = clip_text.end_positions(ids, cfg.text_2.eos_token_id)[:, None]
    second = jnp.where(jnp.arange(ids.shape[1])[None] > ends, 0, ids)
    skip = 1 + cfg.stage.clip_skip

    def run(own: dict[str, Any], *ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        states, output = [], None
        for (name, text), some in zip(encoders.items(), ids):
            output = clip_text.TextEncoder(text, cfg.dtype).apply({"params": own[name]}, some)
            state = clip_text.context(own[name], text, output, clip_skip=skip, final_norm=False)
            states.append(state)
        return jnp.concatenate(states, axis=-1), output.projected

    own = {name: params[name] for name in encoders}
    return shards.over_samples(run, own, ids, second)


def states(encode: Encode, ids: Ids) -> tuple[jax.Array, jax.Array | None]:
    """States [B, L, C] (n rows of `Marked`: [B, n * L, C]) and pooled text [B, P] of prompts.

    Args:
        encode: ids [B, L] -> (states [B, L, C], pooled [B, P] or None).
        ids: token ids [B, L], or `Marked`. The pooled text is of its first row, unweighed.
    """
    if not isinstance(ids, Marked):
        return encode(ids)
    batch, count, length = ids.ids.shape
    flat = jnp.concatenate([ids.ids.reshape(batch * count, length), ids.empty])
    text, pooled = encode(flat)
    text, none = text[:-1], text[-1:]
    more = (ids.weights.reshape(batch * count, length, 1) - 1).astype(text.dtype)
    # So written, a weight of 1 leaves the state as it is, bit for bit.
    text = (text + more * (text - none)).reshape(batch, count * length, -1)
    if pooled is not None:
        pooled = pooled[:-1].reshape(batch, count, -1)[:, 0]
    return text, pooled


def first_rows(ids: Ids) -> jax.Array:
    """The first row of tokens [B, L] of every prompt."""
    return ids.ids[:, 0] if isinstance(ids, Marked) else ids


def together(first: Ids, second: Ids) -> Ids:
    """Two batches of prompts as one, the first one's before the second's."""
    if not isinstance(first, Marked):
        return jnp.concatenate([first, second])
    ids, weights = (jnp.concatenate([a, b]) for a, b in zip(first[:2], second[:2]))
    return Marked(ids, weights, first.empty)
