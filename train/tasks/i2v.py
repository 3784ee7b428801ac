"""Training I2V: motion modules, appearance encoder and ControlNet, on clips and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mv2_jax.train.task import Component, Task, require
from mv2_jax.train.video import VideoTask


def make(cfg: Any, begin: Mapping[str, Component], folder: Path) -> Task:
    """The task, over `begin`'s autoencoder and text encoder, and of a UNet its spatial weights.

    Whatever else `begin` holds (motion_i2v, image_encoder, image_attn, control) it goes on from.

    Raises:
        InputError: one of these is missing, settings do not fit them, or one changes nothing.
    """
    require(begin, "vae", "text_encoder")
    return VideoTask("i2v", cfg, begin, folder).checked().task()
