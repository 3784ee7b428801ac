"""How large the storybox's networks are.

A cell of its latents is 16 pixels wide and holds 32 numbers, twice the toybox's: drawings have more
fine detail than its things. Each component is below 15 MB in half precision.
"""

import dataclasses

from mv2_jax.config import StageConfig, VAEConfig
from mv2_jax.configs.toybox import sizes as toybox

KEYFRAMES = 16  # 46 frames with two between each
WIDTH = 192  # of text states and image tokens

VAE = VAEConfig(
    latent_channels=32,
    channels=(128, 128),
    layers_per_block=2,
    norm_groups=32,
    mid_attention=False,
    patch_size=8,
    latent_patch=1,
    shortcuts=True,
)
TEXT = dataclasses.replace(
    toybox.TEXT,
    max_length=50,  # captions have at most 48 words
    width=WIDTH,
    layers=4,
    heads=6,
    mlp_width=512,
)
VISION = dataclasses.replace(toybox.VISION, width=WIDTH, heads=6, mlp_width=512)
PROJECTION = dataclasses.replace(
    toybox.PROJECTION, in_width=WIDTH, width=WIDTH, out_width=WIDTH, tokens=16, heads=6
)
SPATIAL = dataclasses.replace(
    toybox.SPATIAL,
    in_channels=VAE.plane_channels,
    out_channels=VAE.plane_channels,
    context_width=WIDTH,
)
MOTION = dataclasses.replace(toybox.MOTION, max_frames=KEYFRAMES)
VIDEO = dataclasses.replace(SPATIAL, motion=MOTION, image_tokens=True)
CONTROL = dataclasses.replace(
    toybox.CONTROL,
    unet=dataclasses.replace(SPATIAL, transformers=(0, 0, 0), mid_transformers=0),
)
T2I = StageConfig(SPATIAL, toybox.SCHEDULE, (256, 256), steps=20)
I2V = StageConfig(VIDEO, toybox.SCHEDULE, (256, 256), frames=KEYFRAMES, steps=20)
V2V = StageConfig(VIDEO, toybox.SCHEDULE, (256, 256), frames=KEYFRAMES, steps=20)
