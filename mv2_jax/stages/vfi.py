"""The last stage: frames between the frames (VFI).

The paper's stage makes 94 frames of 32 with a GAN-trained interpolator steadied by a light
pretrained one, EMA-VFI (arXiv 2401.04468): `vfi_gan` and `vfi_ema`. This is RIFE 4.25 alone, what
runs by default: its weights are public and their licence lets them ship.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array, lax

from mv2_jax import params as trees
from mv2_jax.config import RIFEConfig
from mv2_jax.models.rife import RIFE
from mv2_jax.stages import gaps

SHIPPED = Path(__file__).parents[1] / "weights" / "rife" / "rife.safetensors"
# New pixels made at once, each 300 to 600 bytes of working memory. On CPU two frames of 256 x 256
# keep the cores busy, and larger steps were measured to be no faster.
PIXELS_AT_ONCE = {"cpu": 2**17, "other": 2**20}


def shipped() -> tuple[dict[str, Any], RIFEConfig]:
    """The parameters (half precision) and config of the public RIFE 4.25 inside the package.

    Raises:
        FileNotFoundError, ValueError: the installation lacks the file, or it is damaged.
    """
    return trees.load(SHIPPED), RIFEConfig()


@functools.partial(jax.jit, static_argnames=("cfg", "dtype"))
def between(
    params: Mapping[str, Any],
    cfg: RIFEConfig,
    first: Array,
    second: Array,
    times: Array,
    *,
    dtype: Any = jnp.float32,
) -> Array:
    """Frames at chosen times between pairs: [P, H, W, 3] twice, times [P, K] -> [P, K, H, W, 3].

    Frames are in [-1, 1]; time 0 is the first's, 1 the second's. Identical pairs give copies.
    """
    tree = trees.cast(params, dtype)
    new = RIFE(cfg, dtype).apply({"params": tree}, gaps.unit(first), gaps.unit(second), times)
    return gaps.keep_stills(first, second, cast(Array, new))


@functools.partial(jax.jit, static_argnames=("cfg", "times", "dtype"))
def fill(
    params: Any, cfg: RIFEConfig, frames: Array, times: int, *, dtype: Any = jnp.float32
) -> Array:
    """A clip's gaps filled as `stages.interpolators.interpolate` says; T and times at least 2.

    Clips of a batch pass one after the other, and a clip's gaps a few at a time, so memory grows
    by the result alone. A frame's features are made once.
    """
    model = RIFE(cfg, dtype)
    variables = {"params": trees.cast(params, dtype)}
    clock = jnp.arange(1, times, dtype=jnp.float32)[None] / times

    def features(frames: Array) -> Array:
        return cast(Array, model.apply(variables, gaps.unit(frames), method="features"))

    def clip(frames: Array) -> Array:
        count, height, width, _ = frames.shape
        pairs = count - 1
        padded = math.prod(-(-side // cfg.pad_to) * cfg.pad_to for side in (height, width))
        budget = PIXELS_AT_ONCE.get(jax.default_backend(), PIXELS_AT_ONCE["other"])
        steps = -(-pairs // max(1, budget // (padded * (times - 1))))
        each = -(-pairs // steps)
        # The last step may want more frames than there are: it repeats the last one.
        later = jnp.concatenate((frames[1:], jnp.repeat(frames[-1:], steps * each - pairs, axis=0)))
        later = later.reshape(steps, each, *frames.shape[1:])

        def step(last: Array, seconds: Array) -> tuple[Array, Array]:
            # A frame's features are made once: the last ones travel to the next step.
            second = features(seconds)
            first = jnp.concatenate((last, second[:-1]))
            at = jnp.broadcast_to(clock, (each, times - 1))
            new = cast(Array, model.apply(variables, first, second, at, method="between"))
            return second[-1:], new[:, :, :height, :width]

        _, new = lax.scan(step, features(frames[:1]), later)
        new = new.reshape(-1, times - 1, *frames.shape[1:])[:pairs]
        new = gaps.keep_stills(frames[:-1], frames[1:], new)
        filled = jnp.concatenate((frames[:-1, None], new), axis=1)
        return jnp.concatenate((filled.reshape(-1, *frames.shape[1:]), frames[-1:]))

    return lax.map(clip, frames)
