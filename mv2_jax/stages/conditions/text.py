"""Text: from prompts' tokens to what a network reads of them: weights, any length, SDXL's encoders.

With one text encoder that is Stable Diffusion's recipe, cross-attention alone; with two it is
SDXL's (arXiv 2307.01952): cross-attention reads the states of both before their last layers, and
the second's pooled text and the picture's sizes join the time embedding.

A weight w takes a token's state from the empty prompt's state at that place, w times as far as the
token itself is: ComfyUI's rule, and compel's for weights of 1 and more. Below 1 compel mixes in the
prompt without that part: at 0.6 states are 2.3% apart. The web UI's own, to scale the states and
then bring their mean back, divides by a mean that may be next to nothing. A prompt's rows are
encoded each by itself and laid end to end, as all of these tools do.

A prompt that changes from step to step or from frame to frame (`text.timing`) is several texts,
each encoded once; a frame reads their states mixed, as diffusers mixes those of named frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import flax.struct
import jax
import jax.numpy as jnp

from mv2_jax import shards
from mv2_jax.config import TextConfig
from mv2_jax.diffusion import keys
from mv2_jax.models import clip_text
from mv2_jax.stages.conditions import Context, Inputs, Params
from mv2_jax.text.emphasis import Marked

if TYPE_CHECKING:
    from mv2_jax.stages.stage import Config

Ids = jax.Array | Marked
"""Token ids [B, L], or `Marked`."""


class Changing(NamedTuple):
    """Prompts that change, K texts each; a tree of arrays.

    ids: of B * K texts. shares: [B, S, T, K] float32, what each text counts at a step and frame
    (S or T is 1 where none differ). times: [S], the steps' timesteps.
    """

    ids: Ids
    shares: jax.Array
    times: jax.Array


Encode = Callable[[jax.Array], tuple[jax.Array, jax.Array | None]]


@flax.struct.dataclass
class Prompt:
    """What the network is told in words, leading axis B.

    text: [B, L, C] states that cross-attention reads.
    pooled [B, P], size_ids [B, 6]: SDXL's alone, see `size_ids`.
    shares, times: of `Changing` prompts, with a leading axis B; text and pooled then have an axis
        of K texts behind B.
    """

    text: jax.Array
    pooled: jax.Array | None = None
    size_ids: jax.Array | None = None
    shares: jax.Array | None = None
    times: jax.Array | None = None

    def of_frames(self, frames: jax.Array) -> Prompt:
        """What some of a clip's frames are told."""
        if self.shares is None or self.shares.shape[-2] == 1:
            return self
        return dataclasses.replace(self, shares=self.shares[..., frames, :])

    def at(self, t: jax.Array) -> Prompt:
        """The prompt at timesteps t [B]: text [B, L, C], or of this device's frames
        [B, T, L, C]."""
        if self.shares is None or self.times is None:
            return self
        step = jnp.abs(self.times - t[:, None]).argmin(-1)
        share = jnp.take_along_axis(self.shares, step[:, None, None, None], 1)[:, 0]

        def mix(states: jax.Array | None) -> jax.Array | None:
            if states is None:
                return None
            mixed = jnp.einsum("btk,bk...->bt...", share, states).astype(states.dtype)
            return mixed[:, 0] if share.shape[1] == 1 else shards.own(mixed)

        mixed = {"text": mix(self.text), "pooled": mix(self.pooled)}
        return dataclasses.replace(self, **mixed, shares=None, times=None)


@dataclass(frozen=True)
class Text:
    """A prompt. Nothing is what is steered away from, and in training the empty prompt.

    `second`: SDXL's second text encoder (it has a projection); its UNet has a `pooled_width`.
    """

    first: TextConfig
    second: TextConfig | None = None

    name = "text"
    role = "text"
    drop = "drop_text"
    needs = ("ids", "negative")
    takes = ("size_ids", "sizes", "encode_empty")
    rules = ()
    at_steps = ()
    sharded = True

    @property
    def trees(self) -> tuple[str, ...]:
        return tuple(self.configs())

    def configs(self) -> dict[str, TextConfig]:
        second = {} if self.second is None else {"text_encoder_2": self.second}
        return {"text_encoder": self.first, **second}

    def blank(self, cfg: Config, batch: int) -> dict[str, Any]:
        ids = jnp.zeros((batch, self.first.max_length), jnp.int32)
        return {"ids": ids, "negative": ids}

    def init(
        self,
        cfg: Config,
        key: jax.Array,
        x: jax.Array,
        t: jax.Array,
        context: Context,
        held: Params,
    ) -> Params:
        ids = jnp.zeros((1, self.first.max_length), jnp.int32)
        return {
            name: jax.jit(clip_text.TextEncoder(text).init)(keys.fold(key, name), ids)["params"]
            for name, text in self.configs().items()
        }

    def encode(self, params: Params, cfg: Config, inputs: Inputs) -> tuple[Prompt, Prompt]:
        """Told "ids" [B, L], and "negative" [B, L] (or [1, L], for all of them), both `Marked` or
        neither, or both `Changing`. In training SDXL is told the sizes of the batch's pictures: its
        own "size_ids" [B, 6], or the whole plane of its "latent"; and where its "text_states"
        [B, L, C] were made before (and SDXL's "text_pooled" [B, P]), they stand for the ids."""
        ids, negative = inputs["ids"], inputs["negative"]
        if isinstance(ids, Changing):
            return self._changing(params, cfg, ids, negative, inputs)
        states = inputs.get("text_states")
        said = negative if states is not None else together(negative, ids)
        both = self.prompt(params, cfg, said, inputs)
        rows = first_rows(negative).shape[0]
        prompt = jax.tree.map(lambda x: x[rows:], both)
        if states is not None:
            pooled, of = inputs.get("text_pooled"), both.pooled
            prompt = Prompt(
                states.astype(both.text.dtype),
                None if pooled is None or of is None else pooled.astype(of.dtype),
                size_ids(states.shape[0], cfg.stage.size) if self.second else None,
            )
        nothing = jax.tree.map(lambda x, of: jnp.broadcast_to(x[:rows], of.shape), both, prompt)
        if self.second is not None and "latent" in inputs:
            count, (height, width) = inputs["latent"].shape[0], inputs["latent"].shape[-3:-1]
            plane = (height * cfg.factor, width * cfg.factor)
            sizes = inputs.get("size_ids", size_ids(count, plane))
            prompt, nothing = (
                dataclasses.replace(each, size_ids=sizes) for each in (prompt, nothing)
            )
        return prompt, nothing

    def feed(
        self,
        params: Params,
        cfg: Config,
        conditioning: Prompt,
        x: jax.Array,
        t: jax.Array,
        context: Context,
    ) -> Context:
        now = conditioning.at(t)
        told = {"text": now.text, "pooled": now.pooled, "size_ids": now.size_ids}
        return dataclasses.replace(context, **told)

    def of_frames(self, conditioning: Prompt, frames: jax.Array) -> Prompt:
        return conditioning.of_frames(frames)

    def _changing(
        self, params: Params, cfg: Config, ids: Changing, negative: Changing, inputs: Inputs
    ) -> tuple[Prompt, Prompt]:
        """`encode` of prompts that change."""
        shares = jnp.concatenate([negative.shares, ids.shares])
        count, texts = shares.shape[0], shares.shape[-1]
        both = self.prompt(params, cfg, together(negative.ids, ids.ids), inputs)
        both = jax.tree.map(lambda x: x.reshape(count, texts, *x.shape[1:]), both)
        if both.size_ids is not None:
            both = dataclasses.replace(both, size_ids=both.size_ids[:, 0])
        times = jnp.broadcast_to(ids.times, (count, *ids.times.shape))
        both = dataclasses.replace(both, shares=shares, times=times)
        half = count // 2
        return jax.tree.map(lambda x: x[half:], both), jax.tree.map(lambda x: x[:half], both)

    def check(self, pooled_width: int | None) -> None:
        """Whether these text encoders are those that a UNet wants.

        Raises:
            ValueError: a second text encoder without a place for it, or a place without one.
        """
        if (self.second is None) != (pooled_width is None):
            raise ValueError("a UNet with pooled text needs a second text encoder, and only it")
        if self.second is not None and self.second.projection != pooled_width:
            raise ValueError(
                f"the UNet takes pooled text of width {pooled_width}, but the second text "
                f"encoder's projection is {self.second.projection}"
            )

    def prompt(self, params: Params, cfg: Config, ids: Ids, inputs: Inputs | None = None) -> Prompt:
        """Token ids [B, L] (or `Marked`) -> the prompt.

        Args:
            inputs: of them SDXL's "sizes" [6], see `size_ids` (pictures of the stage's size), and
                "encode_empty" [] bool, whether empty prompts are encoded as others are (no).
        """
        inputs = inputs or {}
        if self.second is None:
            return Prompt(states(partial(self._one, params, cfg), ids)[0])
        text, pooled = states(partial(self._two, params, cfg), ids)
        # SDXL was trained with zeros, not with an empty prompt's states, where text was dropped.
        said = clip_text.end_positions(first_rows(ids), self.second.eos_token_id)[:, None] > 1
        said = said | jnp.asarray(inputs.get("encode_empty", False))
        text = jnp.where(said[:, :, None], text, 0)
        pooled = None if pooled is None else jnp.where(said, pooled, 0)
        sizes = inputs.get("sizes")
        if sizes is None:
            return Prompt(text, pooled, size_ids(text.shape[0], cfg.stage.size))
        return Prompt(text, pooled, jnp.broadcast_to(sizes, (text.shape[0], 6)))

    def _one(self, params: Params, cfg: Config, ids: jax.Array) -> tuple[jax.Array, None]:
        """Token ids [B, L] -> the states [B, L, C] of the one text encoder."""
        encoder = clip_text.TextEncoder(self.first, cfg.dtype)

        def run(own: Params, ids: jax.Array) -> jax.Array:
            output = cast(clip_text.TextOutput, encoder.apply({"params": own}, ids))
            return clip_text.context(own, self.first, output, cfg.stage.clip_skip)

        return shards.over_samples(run, params["text_encoder"], ids), None

    def _two(self, params: Params, cfg: Config, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Token ids [B, L] -> states [B, L, C] of both text encoders, the second's pooled text."""
        encoders = self.configs()
        # The two tokenizers differ in padding alone: the first repeats the end, the second zeros.
        end = encoders["text_encoder_2"].eos_token_id
        ends = clip_text.end_positions(ids, end)[:, None]
        second = jnp.where(jnp.arange(ids.shape[1])[None] > ends, 0, ids)
        skip = 1 + cfg.stage.clip_skip

        def run(own: Params, *ids: jax.Array) -> tuple[jax.Array, jax.Array]:
            states, outputs = [], []
            for (name, text), some in zip(encoders.items(), ids):
                encoder = clip_text.TextEncoder(text, cfg.dtype)
                output = cast(clip_text.TextOutput, encoder.apply({"params": own[name]}, some))
                state = clip_text.context(own[name], text, output, clip_skip=skip, final_norm=False)
                states.append(state)
                outputs.append(output)
            return jnp.concatenate(states, axis=-1), outputs[-1].projected

        own = {name: params[name] for name in encoders}
        return shards.over_samples(run, own, ids, second)


def size_ids(batch: int, size: tuple[int, int]) -> jax.Array:
    """SDXL's six numbers for uncropped pictures of `size` pixels -> [B, 6].

    Height and width before any resizing, top and left of the crop, height and width wanted.
    """
    numbers = jnp.asarray((*size, 0, 0, *size), jnp.float32)
    return jnp.broadcast_to(numbers[None], (batch, 6))


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
    return jnp.asarray(ids.ids)[:, 0] if isinstance(ids, Marked) else ids


def together(first: Ids, second: Ids) -> Ids:
    """Two batches of prompts as one, the first one's before the second's."""
    if isinstance(first, Marked) and isinstance(second, Marked):
        ids, weights = (jnp.concatenate([a, b]) for a, b in zip(first[:2], second[:2]))
        return Marked(ids, weights, first.empty)
    if isinstance(first, Marked) or isinstance(second, Marked):
        raise TypeError("of two batches of prompts one is Marked and the other is not")
    return jnp.concatenate([first, second])
