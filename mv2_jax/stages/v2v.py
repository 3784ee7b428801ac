"""V2V: keyframes at a higher resolution, with more detail (arXiv 2401.04468, section 2.3).

The backbone and conditions are I2V's, over the same spatial weights, with motion modules of its
own. A chain starts from the enlarged keyframes noised part-way (SDEdit, arXiv 2108.01073): the
paper does not say how far, so that is the caller's `strength`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from mv2_jax.diffusion import samplers
from mv2_jax.diffusion.guidance import Guidance
from mv2_jax.diffusion.samplers import State
from mv2_jax.stages import chain
from mv2_jax.stages.stage import Config, Params

NAME = "v2v"


@partial(jax.jit, static_argnames=("cfg", "steps"))
def start(
    keys: jax.Array, keyframes: jax.Array, strength: jax.Array, *, cfg: Config, steps: int
) -> State:
    """The chain's state where it begins, part-way.

    Args:
        keys: [B], one a clip.
        keyframes: scaled latents [B, T, h, w, C] of the keyframes at this stage's size.
        strength: [] in 0..1, how much to redraw: 0 keeps the keyframes, at 1 they are noised to
            the first timestep.
    """
    _, grid = chain.program(cfg.stage, steps)
    index = samplers.start_index(steps, strength)
    x = samplers.renoise(grid, index, keyframes, chain.noise(keys, cfg, keyframes.shape[1:]))
    return chain.begin(cfg, grid, x, keys, index)


def sample(
    params: Params,
    cfg: Config,
    inputs: dict[str, Any],
    keyframes: jax.Array,
    keys: jax.Array,
    guidance: Guidance,
    *,
    strength: float,
    **chosen: Any,
) -> jax.Array:
    """Raw inputs and keyframes' latents -> refined latents, like them; `chosen`: `chain.sample`."""
    given = (keyframes, strength)
    return chain.sample(params, cfg, inputs, keys, guidance, start, *given, **chosen)
