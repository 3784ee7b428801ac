"""Frames between the frames by EDSC alone, as published (arXiv 2006.08070).

The paper's GAN interpolator has its head from here; the network itself is not part of the paper.
The functions answer to those of `stages.vfi`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array

from mv2_jax import params as trees
from mv2_jax.config import EDSCConfig
from mv2_jax.models.edsc import EDSC
from mv2_jax.stages import gaps


@functools.partial(jax.jit, static_argnames=("cfg", "dtype"))
def between(
    params: Mapping[str, Any],
    cfg: EDSCConfig,
    first: Array,
    second: Array,
    times: Array,
    *,
    dtype: Any = jnp.float32,
) -> Array:
    """Frames at chosen times between pairs: [P, H, W, 3] twice, times [P, K] -> [P, K, H, W, 3].

    Frames are in [-1, 1], any plane; time 0 is the first's, 1 the second's. Weights that know the
    middle alone give it whatever the times say. Identical pairs give copies.
    """
    model = EDSC(cfg, dtype)
    variables = {"params": trees.cast(params, dtype)}
    pair = gaps.unit(first), gaps.unit(second)

    def at(time: Array) -> Array:
        return cast(Array, model.apply(variables, *pair, time[:, None]))[:, 0]

    new = gaps.each_time(at, times)
    return gaps.keep_stills(first, second, jnp.clip(new, 0, 1))
