"""T2I: one picture from a prompt (MagicVideo-V2, arXiv 2401.04468, section 2.1).

Latent diffusion on the spatial UNet. The paper's own model is unpublished; this is Stable
Diffusion's recipe, or with two text encoders SDXL's (see `prompts`).

Parameters: {"text_encoder", "spatial"}, and "text_encoder_2" where there are two. A sample's chance
all comes from its own key.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mv2_jax.config import StageConfig, TextConfig
from mv2_jax.diffusion import guidance as guides
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import noise_prior, samplers
from mv2_jax.diffusion.guidance import Guidance
from mv2_jax.diffusion.losses import LossConfig, diffusion_loss
from mv2_jax.diffusion.samplers import State
from mv2_jax.models.backbone import denoise
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context
from mv2_jax.stages import chain, prompts
from mv2_jax.stages.prompts import Prompt
from mv2_jax.stages.prompts import encode as encode_text

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
        prompts.check(self)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[h, w, C] of one picture."""
        height, width = self.stage.size
        return height // self.factor, width // self.factor, self.stage.unet.in_channels


def init(cfg: Config, key: jax.Array) -> Params:
    """Fresh parameters of the text encoders and the spatial UNet."""
    x, prompt = jnp.zeros((1, 1, *cfg.latent_shape)), prompts.blank(cfg)
    unet = UNet(cfg.stage.unet).init(
        named.fold(key, "spatial"), x, jnp.zeros(1), Context(prompt.text), **prompt.added
    )
    return {**prompts.init(cfg, key), "spatial": unet["params"]}


def predict(params: Params, cfg: Config, x: jax.Array, t: jax.Array, prompt: Prompt) -> jax.Array:
    """The network's output at noisy latents x [B, h, w, C], timesteps t [B] and prompts."""
    unet = UNet(cfg.stage.unet, cfg.dtype, cfg.remat)

    def network(params: Params, x: jax.Array, t: jax.Array, prompt: Prompt) -> jax.Array:
        x, t, prompt = jax.tree.map(lambda leaf: leaf[0], (x, t, prompt))
        out = unet.apply({"params": params}, x, t, Context(prompt.text), **prompt.added)
        return out[None]

    row = jax.tree.map(lambda leaf: leaf[None], (t, prompt))
    return denoise(network, params["spatial"], x[None, :, None], *row)[0, :, 0]


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
    prompt = prompts.of_batch(encode_text(params, cfg, ids), cfg, batch)
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
