"""An interpolator of one's own: a cross-fade with a learned pace, in `mv2` like any other.

PYTHONPATH=examples mv2 interpolate in.mp4 -o out.mp4 --vfi own_interpolator:FADE
PYTHONPATH=examples mv2 bench vfi in.mp4 --vfi rife,own_interpolator:FADE
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from mv2_jax.stages import gaps
from mv2_jax.stages.vfi_table import Interpolator


@dataclass(frozen=True)
class FadeConfig:
    """A cross-fade. `interpolator` lets files of weights and cascade folders find it again."""

    interpolator: ClassVar[str] = "own_interpolator:FADE"
    any_time: bool = True  # False: the middle between two frames alone


def between(params, cfg, first, second, times, *, dtype=jnp.float32):
    """Two frames [P, H, W, 3] in [-1, 1] and times [P, K] -> [P, K, H, W, 3]."""
    pace = jnp.exp(params["pace"][0].astype(dtype))
    part = (times**pace / (times**pace + (1 - times) ** pace))[..., None, None, None]
    new = gaps.unit(first)[:, None] * (1 - part) + gaps.unit(second)[:, None] * part
    return gaps.keep_stills(first, second, new)


def weights():
    """Those of an even pace."""
    return {"pace": jnp.zeros(1)}, FadeConfig()


def train(first, second, target, times, steps=50):
    """Parameters that fit frames `target` [P, K, H, W, 3] between given ones, by gradient steps."""

    def loss(params):
        return jnp.mean((between(params, FadeConfig(), first, second, times) - target) ** 2)

    params = weights()[0]
    for _ in range(steps):
        params = jax.tree.map(lambda p, g: p - 2.0 * g, params, jax.grad(loss)(params))
    return params


FADE = Interpolator(FadeConfig, between, weights=weights)
