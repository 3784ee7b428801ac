"""I2V: keyframes from a reference picture and a prompt (arXiv 2401.04468, section 2.2).

A video backbone told the text, the reference picture's tokens, and its pixels through a ControlNet
(or its latent as the first frame, through a SparseCtrl). The paper names the mechanisms and gives
no equations; their forms here are the published ones, with AnimateDiff's motion modules (arXiv
2307.04725). A chain starts from noise whose mean is shifted towards the reference's latent (the
latent noise prior, `diffusion.noise_prior`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from mv2_jax.diffusion import noise_prior as prior
from mv2_jax.diffusion.guidance import Guidance
from mv2_jax.diffusion.samplers import State
from mv2_jax.stages import chain
from mv2_jax.stages.stage import Config, Params

NAME = "i2v"


@partial(jax.jit, static_argnames=("cfg", "steps"))
def start(
    keys: jax.Array, reference: jax.Array, strength: jax.Array, *, cfg: Config, steps: int
) -> State:
    """The chain's first state.

    Args:
        keys: [B], one a clip.
        reference: scaled latents [B, h, w, C] of the reference picture at the stage's size.
        strength: lambda of the noise prior, []; at 0 the start is plain noise, bit for bit.
    """
    _, grid = chain.program(cfg.stage, steps)
    x = prior.initial(grid, chain.noise(keys, cfg), reference, strength)
    return chain.begin(cfg, grid, x, keys)


def sample(
    params: Params,
    cfg: Config,
    inputs: dict[str, Any],
    reference: jax.Array,
    keys: jax.Array,
    guidance: Guidance,
    *,
    noise_prior: float,
    **chosen: Any,
) -> jax.Array:
    """Raw inputs and a reference latent -> clip latents [B, T, h, w, C].

    `noise_prior` is `start`'s strength, `chosen` as in `chain.sample`.
    """
    given = (reference, noise_prior)
    inputs = {"reference": reference, **inputs}
    return chain.sample(params, cfg, inputs, keys, guidance, start, *given, **chosen)
