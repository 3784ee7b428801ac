"""I2V: keyframes from a reference picture and a prompt (arXiv 2401.04468, section 2.2).

The network and its conditions are `video`'s. A chain starts from noise whose mean is shifted
towards the reference's latent (the latent noise prior, `diffusion.noise_prior`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mv2_jax.diffusion import free_init, noise_prior, samplers
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion.guidance import Guidance
from mv2_jax.diffusion.samplers import State
from mv2_jax.stages import chain
from mv2_jax.stages.video import Config, Params, advance, condition, init, loss

__all__ = ["Config", "advance", "again", "condition", "init", "loss", "sample", "start"]


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
    sampler, grid = chain.program(cfg.stage, steps)
    x = noise_prior.initial(grid, _noise(keys, cfg), reference, strength)
    return samplers.start(sampler, grid, x, named.fold(keys, "i2v sampler"))


@partial(jax.jit, static_argnames=("cfg", "steps"))
def again(
    keys: jax.Array, latents: jax.Array, turn: jax.Array, *, cfg: Config, steps: int
) -> State:
    """A new first state from where a chain ended, by FreeInit (`diffusion.free_init`).

    Args:
        keys: [B], those that the first chain began with.
        latents: [B, T, h, w, C], the end of the chain before.
        turn: int32 [], which restart this is, from 0: each has its own noise.
    """
    sampler, grid = chain.program(cfg.stage, steps)
    fresh = named.fold(named.fold(keys, "i2v free init"), turn)
    gain = free_init.low_pass(cfg.latent_shape[:-1])
    new = named.normal(fresh, cfg.latent_shape)
    x = free_init.restart(grid, latents, _noise(keys, cfg), new, gain)
    return samplers.start(sampler, grid, x, named.fold(fresh, "i2v sampler"))


def _noise(keys: jax.Array, cfg: Config) -> jax.Array:
    """The noise that a clip begins with."""
    return named.normal(named.fold(keys, "i2v noise"), cfg.latent_shape)


def sample(
    params: Params,
    cfg: Config,
    given: Any,
    reference: jax.Array,
    keys: jax.Array,
    guidance: Guidance,
    *,
    noise_prior: float = 1.0,
    steps: int | None = None,
    free_init: int = 0,
) -> jax.Array:
    """Conditions (`condition`) and a reference latent -> clip latents [B, T, h, w, C].

    One scan, and one more for every restart by FreeInit.
    """
    steps = steps or cfg.stage.steps
    state = start(keys, reference, noise_prior, cfg=cfg, steps=steps)
    for turn in range(free_init):
        ended = advance(params, given, guidance, state, cfg=cfg, steps=steps)
        state = again(keys, ended.x, jnp.int32(turn), cfg=cfg, steps=steps)
    return advance(params, given, guidance, state, cfg=cfg, steps=steps).x
