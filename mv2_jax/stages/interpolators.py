"""Every frame interpolator behind one function, chosen by the class of its config.

An interpolator is a module of functions over parameters and config, as `stages.vfi` is: `between`
for chosen times between two frames, and `interpolate` for a whole clip. Whatever makes frames
between videos or stages asks here, so that a new network is one line in `KINDS`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mv2_jax import shards
from mv2_jax.config import (
    EDSCConfig,
    EMAVFIConfig,
    GANVFIConfig,
    RefinedRIFEConfig,
    RIFEConfig,
)
from mv2_jax.config_vfi import MeanVFIConfig
from mv2_jax.stages import vfi, vfi_edsc, vfi_ema, vfi_gan, vfi_mean, vfi_refined

KINDS: dict[type, ModuleType] = {
    RIFEConfig: vfi,
    RefinedRIFEConfig: vfi_refined,
    EMAVFIConfig: vfi_ema,
    GANVFIConfig: vfi_gan,
    EDSCConfig: vfi_edsc,
    MeanVFIConfig: vfi_mean,
}

# How a pair may be shown to a network: (mirrored, upside down, backwards in time). Each view alone
# is as good as any other; their errors differ, and the mean of the answers has less of them. The
# order is that of what they add: on 40 frames of bikes.mp4 at x3, RIFE 4.25 gains 0.28 dB by two
# views, 0.40 by four and 0.39 by six.
VIEWS = (
    (False, False, False),
    (True, True, False),
    (False, False, True),
    (True, True, True),
    (True, False, False),
    (False, True, False),
    (True, False, True),
    (False, True, True),
)


def kind(cfg: Any) -> ModuleType:
    """The functions of the interpolator that a config describes.

    Raises:
        ValueError: no interpolator has such a config.
    """
    if type(cfg) not in KINDS:
        known = ", ".join(each.__name__ for each in KINDS)
        raise ValueError(f"no interpolator has a {type(cfg).__name__}; there are {known}")
    return KINDS[type(cfg)]


def shares(cfg: Any) -> bool:
    """Whether to ask for all the times between two frames at once.

    Such a network finds once what a pair has whatever the time, and makes one frame after the
    other, so that memory does not grow with their number. RIFE has little to share, and makes them
    all at a time.
    """
    if isinstance(cfg, MeanVFIConfig):
        return all(shares(member) for member in cfg.members)
    return not isinstance(cfg, RIFEConfig)


@functools.partial(jax.jit, static_argnames=("cfg", "views", "dtype"))
def between(
    params: Mapping[str, Any],
    cfg: Any,
    first: Array,
    second: Array,
    times: Array,
    *,
    views: int = 1,
    dtype: Any = jnp.float32,
) -> Array:
    """Frames at chosen times between pairs: [P, H, W, 3] twice, times [P, K] -> [P, K, H, W, 3].

    Frames are in [-1, 1]; time 0 is the first's, 1 the second's. With more `views` than one the
    network sees the pair mirrored, upside down and backwards as well (test-time augmentation), and
    the mean of what it makes is the result: as many times the work.

    Raises:
        ValueError: an unknown config, or `views` not from 1 to 8.
    """
    if not 1 <= views <= len(VIEWS):
        raise ValueError(f"views go from 1 to {len(VIEWS)}; got {views}")

    def run(params: Mapping[str, Any], *pairs: Array) -> Array:
        return kind(cfg).between(params, cfg, *pairs, dtype=dtype)

    make = functools.partial(shards.over_samples, run, params, gathered=False)
    if views == 1:
        return make(first, second, times)

    def turn(x: Array, view: Array, row: int) -> Array:
        """Frames [..., H, W, 3], whose rows are axis `row`, mirrored and upended as `view` says."""
        x = jnp.where(view[0], jnp.flip(x, row + 1), x)
        return jnp.where(view[1], jnp.flip(x, row), x)

    def add(total: Array, view: Array) -> tuple[Array, None]:
        pair = [turn(x, view, 1) for x in (first, second)]
        shown = [jnp.where(view[2], b, a) for a, b in zip(pair, pair[::-1])]
        made = make(*shown, jnp.where(view[2], 1 - times, times))
        return total + turn(made, view, 2).astype(jnp.float32), None

    # One view after another in one loop: memory and compilation are those of a single one.
    start = jnp.zeros((*times.shape, *first.shape[1:]), jnp.float32)
    total, _ = jax.lax.scan(add, start, jnp.array(VIEWS[:views]))
    return (total / views).astype(first.dtype)


def interpolate(
    params: Mapping[str, Any], cfg: Any, frames: Array, times: int, *, dtype: Any = jnp.float32
) -> Array:
    """[B, T, H, W, 3] -> [B, (T - 1) * times + 1, H, W, 3], as `stages.vfi.interpolate` says."""

    def run(params: Mapping[str, Any], frames: Array) -> Array:
        return kind(cfg).interpolate(params, cfg, frames, times, dtype=dtype)

    return shards.over_gaps(run, params, frames, int(times))
