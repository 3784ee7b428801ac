"""What the three diffusion stages do alike: step a guided chain further, and to its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from mv2_jax.config import StageConfig
from mv2_jax.diffusion import guidance as guides
from mv2_jax.diffusion import process, samplers
from mv2_jax.diffusion.guidance import Guidance
from mv2_jax.diffusion.samplers import State
from mv2_jax.diffusion.schedules import Grid
from mv2_jax.programs import Progress

STEPS_AT_ONCE = 5  # a progress bar breathes this often; the result is that of one whole scan


def program(cfg: StageConfig, steps: int) -> tuple[samplers.Sampler, Grid]:
    """The sampler of a stage and the points that it visits in `steps` steps."""
    sampler = samplers.make(cfg.sampler)
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
    denoise = samplers.denoiser(predict, process.of(cfg.schedule).prediction)
    return samplers.sample(denoise, sampler, grid, state, k)


def to_end(name: str, some: Any, state: State, steps: int, progress: Progress) -> State:
    """Runs a chain to its end in equal parts, telling `progress` after each."""
    first = int(state.index)
    total = steps - first
    progress(name, 0, total)
    k = min(STEPS_AT_ONCE, steps)
    for _ in range(0, total, k):
        state = jax.block_until_ready(some(state, k))
        progress(name, min(int(state.index), steps) - first, total)
    return state
