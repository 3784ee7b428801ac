"""Every frame interpolator behind one function, chosen by the class of its config.

`between` makes frames at chosen times between two, `interpolate` fills a whole clip. Which network
a config is for, and what else there is to know of it, stands in `stages.vfi_table`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mv2_jax import shards
from mv2_jax.stages import gaps, vfi_table
from mv2_jax.stages.vfi_table import Config

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


@functools.partial(jax.jit, static_argnames=("cfg", "views", "dtype"))
def between(
    params: Mapping[str, Any],
    cfg: Config,
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
        return vfi_table.of(cfg).part("between")(params, cfg, *pairs, dtype=dtype)

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
    params: Mapping[str, Any], cfg: Config, frames: Array, times: int, *, dtype: Any = jnp.float32
) -> Array:
    """`times` frames for every one: `times - 1` new ones, evenly spaced, in every gap.

    The given frames come out as they went in, and between two identical ones come copies of them.
    Gaps pass one after the other, unless the interpolator has a way of its own.

    Args:
        params: the interpolator's tree, in any floating-point type.
        cfg: its config, which says which interpolator it is.
        frames: [B, T, H, W, 3] in [-1, 1], any H, W and T >= 1.
        times: 1 changes nothing; 3 is the paper's (32 frames become 94); a power of two where
            the weights know the middle alone, which then double again and again.
        dtype: the type of convolutions and attention.

    Returns:
        [B, (T - 1) * times + 1, H, W, 3] in [-1, 1], of the frames' type.

    Raises:
        ValueError: another shape, integer frames, an unknown config, or a `times` that these
            weights cannot do.
    """
    kind = vfi_table.of(cfg)
    own = kind.part("fill")

    def fill(params: Mapping[str, Any], frames: Array, times: int) -> Array:
        frames = gaps.checked(frames, times)
        if times == 1 or frames.shape[1] == 1:
            return frames
        if own:
            return own(params, cfg, frames, int(times), dtype=dtype)
        return gaps.filled(kind.part("between"), params, cfg, frames, int(times), dtype=dtype)

    def run(params: Mapping[str, Any], frames: Array) -> Array:
        return gaps.any_or_doubled(
            functools.partial(fill, params), frames, times, vfi_table.any_time(cfg)
        )

    return shards.over_gaps(run, params, gaps.checked(frames, times), int(times))
