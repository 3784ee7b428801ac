"""MagicVideo-V2's own sizes (arXiv 2401.04468): 94 frames of 1048x1048.

T2I at 1024x1024 is SDXL, the public model of that size; I2V makes 32 keyframes of 600x600, V2V
refines them at 1048x1048, and VFI puts two frames between every two. Latent planes are odd at every
level: 75 > 38 > 19 > 10, and 131 > 66 > 33 > 17.
"""

from dataclasses import replace

from mv2_jax.config import ScheduleConfig, StageConfig, TextConfig, UNetConfig, VAEConfig
from mv2_jax.configs import sd15
from mv2_jax.configs.sd15 import CONTROL, DEFAULTS, PROJECTION, RIFE, TEXT, VAE, VISION

__all__ = [
    "CONTROL", "DEFAULTS", "I2V", "PICTURE_VAE", "PROJECTION", "RIFE", "T2I", "TEXT", "TEXT_2",
    "V2V", "VAE", "VISION",
]  # fmt: skip

TEXT_2 = TextConfig(
    width=1280, layers=32, heads=20, mlp_width=5120, activation="gelu", projection=1280
)
PICTURE_VAE = VAEConfig(scaling_factor=0.13025)
PICTURE = UNetConfig(
    channels=(320, 640, 1280),
    transformers=(0, 2, 10),
    mid_transformers=10,
    heads=(5, 10, 20),
    context_width=2048,
    linear_projection=True,
    pooled_width=1280,
)

T2I = StageConfig(PICTURE, ScheduleConfig(kind="scaled_linear"), (1024, 1024), rule=sd15.RULE)
I2V = replace(sd15.I2V, size=(600, 600), frames=32)
V2V = replace(sd15.V2V, size=(1048, 1048), frames=32)
