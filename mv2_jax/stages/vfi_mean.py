"""Frames between the frames by several interpolators at once: the mean of what they make.

A method of this project's own: networks that were trained apart err apart, and the mean has less
of their errors, as that of several views has (see `stages.interpolators`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mv2_jax.config_vfi import MeanVFIConfig
from mv2_jax.stages import gaps, vfi_table


@functools.partial(jax.jit, static_argnames=("cfg", "dtype"))
def between(
    params: Mapping[str, Any],
    cfg: MeanVFIConfig,
    first: Array,
    second: Array,
    times: Array,
    *,
    dtype: Any = jnp.float32,
) -> Array:
    """Frames at chosen times between pairs: [P, H, W, 3] twice, times [P, K] -> [P, K, H, W, 3].

    `params` is {"0": the first member's tree, "1": the second's ...}. Frames are in [-1, 1].
    Identical pairs give copies.
    """
    total = jnp.zeros((*times.shape, *first.shape[1:]), jnp.float32)
    for k, member in enumerate(cfg.members):
        each = vfi_table.of(member).part("between")
        made = each(params[str(k)], member, first, second, times, dtype=dtype)
        total = total + made.astype(jnp.float32)
    return gaps.keep_stills(first, second, gaps.unit(total / len(cfg.members)))
