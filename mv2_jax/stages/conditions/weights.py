"""How much a condition counts: by one number, by frame, and from where to where in a chain.

A part of a chain is given as the timesteps between which it lies (`stages.controls.between`), since
a network is told those; so it holds for every sampler, and where windows or FreeInit are at work.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import shards
from mv2_jax.stages.conditions import Inputs

ALWAYS = np.asarray([-np.inf, np.inf], np.float32)


def weights(name: str, inputs: Inputs, batch: int) -> dict[str, jax.Array]:
    """What is told of how much the condition of this name counts, leading axis B.

    Args:
        inputs: of it "NAME_scale" [] (1); "NAME_frames" [T], a factor by frame (none);
            "NAME_between" [2], the lowest and the highest timestep at which it is told (all).
    """
    scale = jnp.ones((batch,), jnp.float32) * inputs.get(f"{name}_scale", 1.0)
    frames = inputs.get(f"{name}_frames")
    if frames is not None:
        scale = scale[:, None] * frames[None]
    between = jnp.broadcast_to(inputs.get(f"{name}_between", ALWAYS), (batch, 2))
    return {"scale": scale, "between": between}


def none(conditioning: dict[str, Any]) -> dict[str, Any]:
    """The same with a scale of zero."""
    return {**conditioning, "scale": jnp.zeros_like(conditioning["scale"])}


def of_frames(conditioning: dict[str, Any], frames: jax.Array) -> dict[str, Any]:
    """Weights by frame [B, T] of some of a clip's frames."""
    by_frame = conditioning["scale"].ndim == 2
    return {**conditioning, "scale": conditioning["scale"][:, frames]} if by_frame else conditioning


def at(conditioning: dict[str, Any], t: jax.Array) -> jax.Array:
    """The weight at timesteps t [N]: [N], or [N, T] of this device's frames."""
    scale, between = conditioning["scale"], conditioning["between"]
    on = (between[:, 0] <= t) & (t <= between[:, 1])
    if scale.ndim == 2:
        scale, on = shards.own(scale), on[:, None]
    return jnp.where(on, scale, 0.0)
