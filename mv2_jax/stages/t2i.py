"""T2I: one picture from a prompt (MagicVideo-V2, arXiv 2401.04468, section 2.1).

Latent diffusion on the spatial UNet, conditioned on text by cross-attention alone. The paper's
own model is unpublished; this is Stable Diffusion's recipe.

Parameters: {"text_encoder", "spatial"}. A sample's chance all comes from its own key.
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
from mv2_jax.models import clip_text
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context
from mv2_jax.stages import chain

Params = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """The stage's networks. `factor`: pixels along a latent cell; `dtype`: of computation."""

    stage: StageConfig
    text: TextConfig
    factor: int
    dtype: Any = jnp.float32

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[h, w, C] of one picture."""
        height, width = self.stage.size
        return height // self.factor, width // self.factor, self.stage.unet.in_channels


def init(cfg: Config, key: jax.Array) -> Params:
    """Fresh parameters of the text encoder and the spatial UNet."""
    ids = jnp.zeros((1, cfg.text.max_length), jnp.int32)
    text = clip_text.TextEncoder(cfg.text).init(named.fold(key, "text_encoder"), ids)["params"]
    context = Context(jnp.zeros((1, cfg.text.max_length, cfg.text.width)))
    x = jnp.zeros((1, 1, *cfg.latent_shape))
    unet = UNet(cfg.stage.unet).init(named.fold(key, "spatial"), x, jnp.zeros(1), context)
    return {"text_encoder": text, "spatial": unet["params"]}


def encode_text(params: Params, cfg: Config, ids: jax.Array) -> jax.Array:
    """Token ids [B, L] -> text states [B, L, C] that cross-attention reads."""
    encoder = clip_text.TextEncoder(cfg.text, cfg.dtype)
    output = encoder.apply({"params": params["text_encoder"]}, ids)
    return clip_text.context(params["text_encoder"], cfg.text, output)


def predict(params: Params, cfg: Config, x: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
    """The network's output at noisy latents x [B, h, w, C], timesteps t [B], text [B, L, C]."""
    unet = UNet(cfg.stage.unet, cfg.dtype)
    return unet.apply({"params": params["spatial"]}, x[:, None], t, Context(text))[:, 0]


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
            tokens of the empty prompt, which stand for a dropped text.
        key: one key of the step; each sample folds its own from it.
        drop_text: how often a sample's text is dropped (classifier-free guidance).
    """
    latent, ids = batch["latent"], batch["ids"]
    keys = named.per_sample(key, latent.shape[0])
    dropped = named.bernoulli(named.fold(keys, "drop_text"), drop_text)
    ids = jnp.where(dropped[:, None], batch["null_ids"][None], ids)
    text = encode_text(params, cfg, ids)
    return diffusion_loss(
        lambda x, t: predict(params, cfg, x, t, text), latent, keys, cfg.stage.schedule, shape
    )


@partial(jax.jit, static_argnames=("cfg",))
def condition(params: Params, ids: jax.Array, negative: jax.Array, *, cfg: Config) -> jax.Array:
    """Text states of the prompts [B, L] and of what to steer away from [B, L], for two ways."""
    states = encode_text(params, cfg, jnp.concatenate([negative, ids]))
    return guides.stack(*jnp.split(states, 2))


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
    text: jax.Array,
    guidance: Guidance,
    state: State,
    *,
    cfg: Config,
    steps: int,
    k: int | None = None,
) -> State:
    """The next `k` of `steps` steps. `text` is `condition`'s; the last state's x is the latent."""

    def model(x: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
        return predict(params, cfg, x, t, text)

    return chain.further(model, cfg.stage, text, guidance, state, ways=2, steps=steps, k=k)


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
    steps = steps or cfg.stage.steps
    text = condition(params, ids, negative, cfg=cfg)
    state = start(keys, cfg=cfg, steps=steps)
    return advance(params, text, guidance, state, cfg=cfg, steps=steps).x
