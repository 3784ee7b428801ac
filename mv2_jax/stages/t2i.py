"""T2I: one picture from a prompt (MagicVideo-V2, arXiv 2401.04468, section 2.1).

Latent diffusion on the spatial UNet. The paper's own model is unpublished; with one text encoder
this is Stable Diffusion's recipe, conditioned on text by cross-attention alone, and with two it is
SDXL's (arXiv 2307.01952): cross-attention reads the states of both before their last layers, and
the second's pooled text and the picture's sizes join the time embedding.

Parameters: {"text_encoder", "spatial"}, and "text_encoder_2" where there are two. A sample's chance
all comes from its own key.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from mv2_jax.config import StageConfig, TextConfig
from mv2_jax.diffusion import guidance as guides
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import noise_prior, samplers
from mv2_jax.diffusion.guidance import Guidance
from mv2_jax.diffusion.losses import LossConfig, diffusion_loss
from mv2_jax.diffusion.samplers import State
from mv2_jax.models import clip_text
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context
from mv2_jax.stages import chain, prompts

Params = dict[str, Any]
WAYS = 2  # guidance: what to steer away from, and the prompt


@dataclass(frozen=True)
class Config:
    """The stage's networks. `factor`: pixels along a latent cell; `dtype`: of computation.

    `remat`: recompute each block of the UNet in the backward pass, for memory in training.
    `text_2`: SDXL's second text encoder (it has a projection); its UNet has a `pooled_width`.
    """

    stage: StageConfig
    text: TextConfig
    factor: int
    dtype: Any = jnp.float32
    text_2: TextConfig | None = None
    remat: bool = False

    def __post_init__(self) -> None:
        unet, second = self.stage.unet, self.text_2
        if (second is None) != (unet.pooled_width is None):
            raise ValueError("a UNet with pooled text needs a second text encoder, and only it")
        if second is not None and second.projection != unet.pooled_width:
            raise ValueError(
                f"the UNet takes pooled text of width {unet.pooled_width}, but the second text "
                f"encoder's projection is {second.projection}"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[h, w, C] of one picture."""
        height, width = self.stage.size
        return height // self.factor, width // self.factor, self.stage.unet.in_channels


@flax.struct.dataclass
class Prompt:
    """What the network is told, leading axis B (or ways * B).

    text: [B, L, C] states that cross-attention reads.
    pooled [B, P], size_ids [B, 6]: SDXL's alone, see `size_ids`.
    """

    text: jax.Array
    pooled: jax.Array | None = None
    size_ids: jax.Array | None = None


def init(cfg: Config, key: jax.Array) -> Params:
    """Fresh parameters of the text encoders and the spatial UNet."""
    ids = jnp.zeros((1, cfg.text.max_length), jnp.int32)
    encoders = {"text_encoder": cfg.text, "text_encoder_2": cfg.text_2}
    params = {
        name: clip_text.TextEncoder(text).init(named.fold(key, name), ids)["params"]
        for name, text in encoders.items()
        if text is not None
    }
    width = sum(text.width for text in encoders.values() if text is not None)
    context = Context(jnp.zeros((1, cfg.text.max_length, width)))
    x, added = jnp.zeros((1, 1, *cfg.latent_shape)), {}
    if cfg.text_2 is not None:
        pooled = jnp.zeros((1, cfg.stage.unet.pooled_width))
        added = {"pooled": pooled, "size_ids": size_ids(1, cfg.stage.size)}
    unet = UNet(cfg.stage.unet).init(named.fold(key, "spatial"), x, jnp.zeros(1), context, **added)
    return {**params, "spatial": unet["params"]}


def size_ids(batch: int, size: tuple[int, int]) -> jax.Array:
    """SDXL's six numbers for uncropped pictures of `size` pixels -> [B, 6].

    Height and width before any resizing, top and left of the crop, height and width wanted.
    """
    numbers = jnp.asarray((*size, 0, 0, *size), jnp.float32)
    return jnp.broadcast_to(numbers[None], (batch, 6))


def encode_text(params: Params, cfg: Config, ids: prompts.Ids) -> Prompt:
    """Token ids [B, L] (or `Marked`) -> the prompt, for pictures of the stage's size."""
    if cfg.text_2 is None:
        return Prompt(prompts.states(partial(_encode_one, params, cfg), ids)[0])
    text, pooled = prompts.states(partial(_encode_two, params, cfg), ids)
    # SDXL was trained with zeros, not with an empty prompt's states, where text was dropped.
    first = prompts.first_rows(ids)
    said = clip_text.end_positions(first, cfg.text_2.eos_token_id)[:, None] > 1
    text, pooled = jnp.where(said[:, :, None], text, 0), jnp.where(said, pooled, 0)
    return Prompt(text, pooled, size_ids(text.shape[0], cfg.stage.size))


def _encode_one(params: Params, cfg: Config, ids: jax.Array) -> tuple[jax.Array, None]:
    """Token ids [B, L] -> the states [B, L, C] of the one text encoder."""
    encoder, own = clip_text.TextEncoder(cfg.text, cfg.dtype), params["text_encoder"]
    output = encoder.apply({"params": own}, ids)
    return clip_text.context(own, cfg.text, output, cfg.stage.clip_skip), None


def _encode_two(params: Params, cfg: Config, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Token ids [B, L] -> states [B, L, C] of both text encoders, and the second's pooled text."""
    encoder = clip_text.TextEncoder(cfg.text, cfg.dtype)
    output = encoder.apply({"params": params["text_encoder"]}, ids)
    # The two tokenizers differ in padding alone: the first repeats the end, the second has zeros.
    ends = clip_text.end_positions(ids, cfg.text_2.eos_token_id)[:, None]
    second = jnp.where(jnp.arange(ids.shape[1])[None] > ends, 0, ids)
    encoder = clip_text.TextEncoder(cfg.text_2, cfg.dtype)
    output_2 = encoder.apply({"params": params["text_encoder_2"]}, second)
    skip = 1 + cfg.stage.clip_skip
    states = [
        clip_text.context(params[name], text, out, clip_skip=skip, final_norm=False)
        for name, text, out in (
            ("text_encoder", cfg.text, output),
            ("text_encoder_2", cfg.text_2, output_2),
        )
    ]
    return jnp.concatenate(states, axis=-1), output_2.projected


def predict(params: Params, cfg: Config, x: jax.Array, t: jax.Array, prompt: Prompt) -> jax.Array:
    """The network's output at noisy latents x [B, h, w, C], timesteps t [B] and prompts."""
    unet = UNet(cfg.stage.unet, cfg.dtype, cfg.remat)
    added = {"pooled": prompt.pooled, "size_ids": prompt.size_ids}
    context = Context(prompt.text)
    return unet.apply({"params": params["spatial"]}, x[:, None], t, context, **added)[:, 0]


def loss(
    params: Params,
    cfg: Config,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    drop_text: float = 0.1,
    shape: LossConfig = LossConfig(),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The denoising loss of a batch.

    Args:
        batch: "latent" [B, h, w, C] scaled, of any plane; "ids" [B, L]; "null_ids" [L], the
            tokens of the empty prompt, which stand for a dropped text; for SDXL optionally
            "size_ids" [B, 6] of the pictures, else the latents' whole plane is meant.
        key: one key of the step; each sample folds its own from it.
        drop_text: how often a sample's text is dropped (classifier-free guidance).
    """
    latent, ids = batch["latent"], batch["ids"]
    keys = named.per_sample(key, latent.shape[0])
    dropped = named.bernoulli(named.fold(keys, "drop_text"), drop_text)
    ids = jnp.where(dropped[:, None], batch["null_ids"][None], ids)
    prompt = encode_text(params, cfg, ids)
    if cfg.text_2 is not None:
        plane = (latent.shape[1] * cfg.factor, latent.shape[2] * cfg.factor)
        prompt = prompt.replace(size_ids=batch.get("size_ids", size_ids(latent.shape[0], plane)))
    return diffusion_loss(
        lambda x, t: predict(params, cfg, x, t, prompt), latent, keys, cfg.stage.schedule, shape
    )


@partial(jax.jit, static_argnames=("cfg",))
def condition(params: Params, ids: prompts.Ids, negative: prompts.Ids, *, cfg: Config) -> Prompt:
    """Prompts, and what to steer away from, for two ways: token ids [B, L], or both `Marked`."""
    both = encode_text(params, cfg, prompts.together(negative, ids))
    rows = prompts.first_rows(ids).shape[0]
    away = jax.tree.map(lambda x: x[:rows], both)
    towards = jax.tree.map(lambda x: x[rows:], both)
    return guides.stack(away, towards)


@partial(jax.jit, static_argnames=("cfg", "steps"))
def start(keys: jax.Array, *, cfg: Config, steps: int) -> State:
    """Noise for one picture a key [B], at the first step."""
    sampler, grid = chain.program(cfg.stage, steps)
    eps = named.normal(named.fold(keys, "t2i noise"), cfg.latent_shape)
    x = noise_prior.plain(grid, eps)
    return samplers.start(sampler, grid, x, named.fold(keys, "t2i sampler"))


@partial(jax.jit, static_argnames=("cfg", "steps", "k"))
def advance(
    params: Params,
    prompt: Prompt,
    guidance: Guidance,
    state: State,
    *,
    cfg: Config,
    steps: int,
    k: int | None = None,
) -> State:
    """The next `k` of `steps` steps; the last state's x is the latent.

    `prompt` is `condition`'s, or what `guidance.fewest` left of it.
    """

    def model(x: jax.Array, t: jax.Array, prompt: Prompt) -> jax.Array:
        return predict(params, cfg, x, t, prompt)

    ways = prompt.text.shape[0] // state.x.shape[0]
    return chain.further(model, cfg.stage, prompt, guidance, state, ways=ways, steps=steps, k=k)


def sample(
    params: Params,
    cfg: Config,
    ids: jax.Array,
    negative: jax.Array,
    keys: jax.Array,
    guidance: Guidance,
    steps: int | None = None,
) -> jax.Array:
    """Prompts' token ids [B, L] -> scaled latents [B, h, w, C], in one jitted scan."""
    both = condition(params, ids, negative, cfg=cfg)
    return draw(params, cfg, both, keys, guidance, steps)


def draw(
    params: Params,
    cfg: Config,
    prompt: Prompt,
    keys: jax.Array,
    guidance: Guidance,
    steps: int | None = None,
) -> jax.Array:
    """`sample` from conditions: `condition`'s, or of one's own, for two ways of guidance."""
    steps = steps or cfg.stage.steps
    state = start(keys, cfg=cfg, steps=steps)
    return advance(params, prompt, guidance, state, cfg=cfg, steps=steps).x
