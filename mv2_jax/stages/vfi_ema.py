"""Frames between the frames by EMA-VFI, the paper's light interpolator (arXiv 2401.04468).

The functions answer to those of `stages.vfi`. Of the public weights only the `_t` variants know
other times than the middle; for the others `interpolate` doubles again and again.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array

from mv2_jax import params as trees
from mv2_jax.config import EMAVFIConfig
from mv2_jax.models.ema_vfi import EMAVFI, unpad
from mv2_jax.stages import gaps


@functools.partial(jax.jit, static_argnames=("cfg", "tta", "dtype"))
def between(
    params: Mapping[str, Any],
    cfg: EMAVFIConfig,
    first: Array,
    second: Array,
    times: Array,
    *,
    tta: bool = False,
    dtype: Any = jnp.float32,
) -> Array:
    """Frames at chosen times between pairs: [P, H, W, 3] twice, times [P, K] -> [P, K, H, W, 3].

    Frames are in [-1, 1], any plane; time 0 is the first's, 1 the second's. The backbone runs once
    for all times. Identical pairs give copies. With `tta` (test-time augmentation) it also works on
    the pair turned by 180 degrees and gives the mean of both: twice the work, a little better.
    """
    model = EMAVFI(cfg, dtype)
    variables = {"params": trees.cast(params, dtype)}
    height, width = first.shape[1:3]

    def run(first: Array, second: Array) -> Array:
        pair = model.apply(variables, first, second, method="features")

        def at(time: Array) -> Array:
            return cast(Array, model.apply(variables, pair, time, method="at"))

        new = gaps.each_time(at, times)
        return unpad(new, height, width, cfg)

    pair = gaps.unit(first), gaps.unit(second)
    new = run(*pair)
    if tta:
        turned = run(*(jnp.flip(x, (1, 2)) for x in pair))
        new = (new + jnp.flip(turned, (2, 3))) / 2
    return gaps.keep_stills(first, second, new)
