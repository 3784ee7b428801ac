"""How networks that were distilled to few steps are sampled, as their publishers say.

Guidance of 1 guides nothing: the distillation has already put it into the network.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from mv2_jax.config import ScheduleConfig, StageConfig
from mv2_jax.errors import InputError


class Few(NamedTuple):
    """A sampling program: its sampler, timestep spacing, number of steps and guidance scale."""

    sampler: str
    spacing: str
    steps: int
    guidance: float


# Motion modules, both trained on AnimateDiff's linear betas.
FEW_STEPS = {
    # AnimateDiff-Lightning (arXiv 2403.12706) comes distilled to 1, 2, 4 and 8 steps.
    "lightning": Few("euler", "trailing", 4, 1.0),
    # AnimateLCM (arXiv 2402.00769): 4 to 8 steps, guidance from 1 to 2.
    "lcm": Few("lcm", "leading", 6, 2.0),
}

# Networks of pictures, over the schedule of the network that they were distilled from.
PICTURE_STEPS = {
    # SDXL-Turbo (arXiv 2311.17042): 1 to 4 steps.
    "turbo": Few("euler_a", "trailing", 4, 1.0),
    # SDXL-Lightning (arXiv 2402.13929) comes distilled to 2, 4 and 8 steps.
    "lightning": Few("euler", "trailing", 4, 1.0),
    # LCM and LCM-LoRA (arXiv 2311.05556): 4 to 8 steps, guidance from 1 to 2.
    "lcm": Few("lcm", "leading", 4, 1.0),
    # TCD (arXiv 2402.19159): from 2 steps, with its eta of 0.3.
    "tcd": Few("tcd", "leading", 4, 1.0),
    # Hyper-SD (arXiv 2404.13686) comes distilled to 1, 2, 4, 8 and 12 steps.
    "hyper": Few("ddim", "trailing", 8, 1.0),
    # DMD2 (arXiv 2405.14867): the timesteps 999, 749, 499 and 249 of its README.
    "dmd2": Few("lcm", "trailing", 4, 1.0),
}


def few(stage: StageConfig, name: str) -> StageConfig:
    """The stage sampled by the program `FEW_STEPS[name]`, over AnimateDiff's linear betas.

    Raises:
        InputError: the stage's process is no discrete schedule.
    """
    program = FEW_STEPS[name]
    if not isinstance(stage.schedule, ScheduleConfig):
        raise InputError(
            f"the few steps of {name!r} need a discrete schedule; this stage's process is "
            f"{type(stage.schedule).__name__}"
        )
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
