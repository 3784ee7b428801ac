"""T2I: one picture from a prompt (MagicVideo-V2, arXiv 2401.04468, section 2.1).

Latent diffusion on the spatial UNet, told the text alone. The paper's own model is unpublished;
this is Stable Diffusion's recipe, or with two text encoders SDXL's. A chain starts from noise.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from mv2_jax.diffusion import noise_prior
from mv2_jax.diffusion.guidance import Guidance
from mv2_jax.diffusion.samplers import State
from mv2_jax.stages import chain
from mv2_jax.stages.stage import Config, Params

NAME = "t2i"


@partial(jax.jit, static_argnames=("cfg", "steps"))
def start(keys: jax.Array, *, cfg: Config, steps: int) -> State:
    """Noise for one picture a key [B], at the first step: x [B, 1, h, w, C]."""
    _, grid = chain.program(cfg.stage, steps)
    return chain.begin(cfg, grid, noise_prior.plain(grid, chain.noise(keys, cfg)), keys)


def sample(
    params: Params,
    cfg: Config,
    inputs: dict[str, Any],
    keys: jax.Array,
    guidance: Guidance,
    **chosen: Any,
) -> jax.Array:
    """Prompts' raw inputs ("ids", "negative") -> scaled latents [B, 1, h, w, C].

    `chosen` as in `chain.sample`.
    """
    return chain.sample(params, cfg, inputs, keys, guidance, start, **chosen)
