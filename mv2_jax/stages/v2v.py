"""V2V: keyframes at a higher resolution, with more detail (arXiv 2401.04468, section 2.3).

The network and its conditions are `video`'s, over the same spatial weights as I2V, with motion
modules of its own. A chain starts from the enlarged keyframes noised part-way (SDEdit, arXiv
2108.01073): the paper does not say how far, so that is the caller's `strength`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import samplers
from mv2_jax.diffusion.guidance import Guidance
from mv2_jax.diffusion.samplers import State
from mv2_jax.stages import chain
from mv2_jax.stages.video import Config, Params, advance, condition, init, loss

__all__ = ["Config", "advance", "condition", "init", "loss", "sample", "start"]


@partial(jax.jit, static_argnames=("cfg", "steps"))
def start(
    keys: jax.Array, keyframes: jax.Array, strength: jax.Array, *, cfg: Config, steps: int
) -> State:
    """The chain's state where it begins, part-way.

    Args:
        keys: [B], one a clip.
        keyframes: scaled latents [B, T, h, w, C] of the keyframes at this stage's size.
        strength: [] in 0..1, how much to redraw: 0 keeps the keyframes, 1 begins at pure noise.
    """
    sampler, grid = chain.program(cfg.stage, steps)
    index = samplers.start_index(steps, strength)
    eps = named.normal(named.fold(keys, "v2v noise"), keyframes.shape[1:])
    x = samplers.renoise(grid, index, keyframes, eps)
    return samplers.start(sampler, grid, x, named.fold(keys, "v2v sampler"), index)


def sample(
    params: Params,
    cfg: Config,
    given: Any,
    keyframes: jax.Array,
    keys: jax.Array,
    guidance: Guidance,
    *,
    strength: float = 0.5,
    steps: int | None = None,
) -> jax.Array:
    """Conditions (`condition`) and keyframe latents -> refined latents, like them, in one scan."""
    steps = steps or cfg.stage.steps
    state = start(keys, keyframes, strength, cfg=cfg, steps=steps)
    return advance(params, given, guidance, state, cfg=cfg, steps=steps).x
