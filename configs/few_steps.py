"""How motion modules that were distilled to few steps are sampled, as their publishers say.

Both were trained on AnimateDiff's linear betas. Guidance of 1 guides nothing: the distillation has
already put it into the network.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from mv2_jax.config import StageConfig


class Few(NamedTuple):
    """A sampling program: its sampler, timestep spacing, number of steps and guidance scale."""

    sampler: str
    spacing: str
    steps: int
    guidance: float


FEW_STEPS = {
    # AnimateDiff-Lightning (arXiv 2403.12706) comes distilled to 1, 2, 4 and 8 steps.
    "lightning": Few("euler", "trailing", 4, 1.0),
    # AnimateLCM (arXiv 2402.00769): 4 to 8 steps, guidance from 1 to 2.
    "lcm": Few("lcm", "leading", 6, 2.0),
}


def few(stage: StageConfig, name: str) -> StageConfig:
    """The stage sampled by the program `FEW_STEPS[name]`, over AnimateDiff's linear betas."""
    program = FEW_STEPS[name]
    schedule = dataclasses.replace(
        stage.schedule,
        kind="linear",
        beta_start=0.00085,
        beta_end=0.012,
        spacing=program.spacing,
    )
    return dataclasses.replace(
        stage, schedule=schedule, sampler=program.sampler, steps=program.steps
    )
