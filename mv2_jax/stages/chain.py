"""What the three diffusion stages do alike: step a guided chain some steps further."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from mv2_jax.config import StageConfig
from mv2_jax.diffusion import guidance as guides
from mv2_jax.diffusion import samplers
from mv2_jax.diffusion.guidance import Guidance
from mv2_jax.diffusion.samplers import State
from mv2_jax.diffusion.schedules import Grid


def program(cfg: StageConfig, steps: int) -> tuple[samplers.Sampler, Grid]:
    """The sampler of a stage and the points that it visits in `steps` steps."""
    sampler = samplers.get(cfg.sampler)()
    return sampler, sampler.grid(cfg.schedule, steps)


def further(
    model: Callable[[jax.Array, jax.Array, Any], jax.Array],
    cfg: StageConfig,
    condition: Any,
    guidance: Guidance,
    state: State,
    *,
    ways: int,
    steps: int,
    k: int | None,
) -> State:
    """The next `k` steps (all where None) of a chain of `steps`, under guidance.

    Args:
        model: `model(x, t, condition) -> output`, as `guidance.guided` wants it.
        condition: stacked over `ways`, see `guidance.stack`.
    """
    sampler, grid = program(cfg, steps)
    predict = guides.guided(model, condition, guidance, ways)
    denoise = samplers.denoiser(predict, cfg.schedule.prediction)
    return samplers.sample(denoise, sampler, grid, state, k)
