"""Frames between the frames by RIFE 4.0 with its refinement networks (arXiv 2011.06294).

Not the paper's choice but this project's: beside RIFE 4.25 of `stages.vfi` the best of the public
interpolators whose licence lets anyone use them. The functions answer to those of that module.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array

from mv2_jax import params as trees
from mv2_jax.config import RefinedRIFEConfig
from mv2_jax.models.rife_refined import RefinedRIFE
from mv2_jax.stages import gaps

SHIPPED = Path(__file__).parents[1] / "weights" / "rife40" / "rife40.safetensors"


def shipped() -> tuple[dict[str, Any], RefinedRIFEConfig]:
    """The parameters (half precision) and config of the public RIFE 4.0 inside the package.

    Raises:
        FileNotFoundError, ValueError: the installation lacks the file, or it is damaged.
    """
    return trees.load(SHIPPED), RefinedRIFEConfig()


@functools.partial(jax.jit, static_argnames=("cfg", "dtype"))
def between(
    params: Mapping[str, Any],
    cfg: RefinedRIFEConfig,
    first: Array,
    second: Array,
    times: Array,
    *,
    dtype: Any = jnp.float32,
) -> Array:
    """Frames at chosen times between pairs: [P, H, W, 3] twice, times [P, K] -> [P, K, H, W, 3].

    Frames are in [-1, 1], any plane; time 0 is the first's, 1 the second's. The context networks
    run once for all times. Identical pairs give copies.
    """
    model = RefinedRIFE(cfg, dtype)
    variables = {"params": trees.cast(params, dtype)}
    height, width = first.shape[1:3]
    pair = model.apply(variables, gaps.unit(first), gaps.unit(second), method="features")

    def at(time: Array) -> Array:
        return cast(Array, model.apply(variables, pair, time, method="at"))

    new = gaps.each_time(at, times)
    return gaps.keep_stills(first, second, new[:, :, :height, :width])
