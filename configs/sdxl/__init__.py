"""The cascade on SDXL alone: 16 frames of 1024x1024.

SDXL with AnimateDiff's modules for it (its beta), an IP-Adapter-Plus for SDXL with its ViT-H, and
a ControlNet for SDXL that takes a picture (tile). T2I is the same SDXL; V2V refines at I2V's own
size.
"""

from dataclasses import replace

from mv2_jax.config import (
    ControlNetConfig,
    ImageProjectionConfig,
    MotionConfig,
    ScheduleConfig,
    StageConfig,
)
from mv2_jax.configs.paper import DEFAULTS, PICTURE, PICTURE_VAE, RIFE, T2I, TEXT, TEXT_2, VISION
from mv2_jax.configs.sd15 import RULE

__all__ = [
    "CONTROL", "DEFAULTS", "I2V", "PICTURE_VAE", "PROJECTION", "RIFE", "T2I", "TEXT", "TEXT_2",
    "TRAINING", "V2V", "VAE", "VISION",
]  # fmt: skip

VAE = PICTURE_VAE
PROJECTION = ImageProjectionConfig(width=1280, out_width=2048, heads=20)
CONTROL = ControlNetConfig(PICTURE)
# SDXL's modules are normalised over whole clips (the original code's branch for SDXL).
VIDEO = replace(PICTURE, motion=MotionConfig(norm_scope="clip"), image_tokens=True)
MOVING = ScheduleConfig(kind="scaled_linear", beta_end=0.02)

I2V = StageConfig(VIDEO, MOVING, (1024, 1024), frames=16, rule=RULE)
V2V = StageConfig(VIDEO, MOVING, (1024, 1024), frames=16, rule=RULE)

# Of training its networks (configs/sdxl/*.py): what is frozen lies on the device as folders store
# it. The rate is AnimateDiff's (arXiv 2307.04725) and IP-Adapter's (arXiv 2308.06721).
TRAINING = {"network": "sdxl", "frozen_dtype": "fp16", "remat": True, "optim": {"lr": 1e-4}}
