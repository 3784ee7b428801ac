"""Training V2V: what is its own, at the higher resolution, over I2V's other weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mv2_jax.train.task import Component, Task, require
from mv2_jax.train.video import VideoTask


def make(cfg: Any, begin: Mapping[str, Component], folder: Path) -> Task:
    """The task, over the trees that its network and conditions read.

    What is V2V's own (a UNet's motion modules) begins as V2V's or I2V's in `begin`; everything else
    as it is there. Only what is trained may begin fresh: a condition, or a backbone of which
    nothing is given.

    Raises:
        InputError: a component is missing, settings do not fit them, or one changes nothing.
    """
    require(begin, "vae", "text_encoder")
    task = VideoTask("v2v", cfg, begin, folder)
    backbone = task.net.backbone
    known = [name for name in task.net.trees if task.given(name)]
    begun = any(name in known for name in backbone.parts)
    for name in task.net.trees:
        fresh = name in task.trained and not (begun and name in backbone.parts)
        if name not in known and not fresh:
            require(begin, f"{name}_i2v" if name in backbone.own else name)
    return task.checked().task()
