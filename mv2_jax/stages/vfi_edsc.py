"""Frames between the frames by EDSC alone, as published (arXiv 2006.08070).

The paper's GAN interpolator has its head from here; the network itself is not part of the paper.
The functions answer to those of `stages.vfi`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mv2_jax import params as parameters
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
    variables = {"params": parameters.cast(params, dtype)}
    pair = gaps.unit(first), gaps.unit(second)
    new = gaps.each_time(lambda time: model.apply(variables, *pair, time[:, None])[:, 0], times)
    return gaps.keep_stills(first, second, jnp.clip(new, 0, 1))


def interpolate(
    params: Mapping[str, Any],
    cfg: EDSCConfig,
    frames: Array,
    times: int,
    *,
    dtype: Any = jnp.float32,
) -> Array:
    """`times` frames for every one: `times - 1` new ones, evenly spaced, in every gap.

    The given frames come out as they went in. Gaps pass one after the other.

    Args:
        params: EDSC's tree, in any floating-point type.
        frames: [B, T, H, W, 3] in [-1, 1], any H, W and T >= 1.
        times: 1 changes nothing; a power of two where `cfg` knows the middle alone.
        dtype: the convolutions' type.

    Returns:
        [B, (T - 1) * times + 1, H, W, 3] in [-1, 1], of the frames' type.

    Raises:
        ValueError: another shape, integer frames, or a `times` that these weights cannot do.
    """
    fill = functools.partial(gaps.interpolate, between, params, cfg, dtype=dtype)
    return gaps.any_or_doubled(fill, frames, times, cfg.any_time)
