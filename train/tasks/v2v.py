"""Training V2V: motion modules at the higher resolution, over I2V's other weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mv2_jax.train.task import Component, Task, require
from mv2_jax.train.video import VideoTask


def make(cfg: Any, begin: Mapping[str, Component], folder: Path) -> Task:
    """The task, over all that I2V is made of; the motion modules begin as I2V's.

    Raises:
        InputError: a component is missing, or settings that do not fit them.
    """
    names = ("vae", "text_encoder", "spatial", "image_encoder", "image_attn", "control")
    require(begin, *names)
    if "motion_v2v" not in begin:
        require(begin, "motion_i2v")
    return VideoTask("v2v", cfg, begin, folder).task()
