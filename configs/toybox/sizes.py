"""How large the toybox's networks are: the one cascade that ships with the package.

A cell of its latents is 16 pixels wide, so a frame of 256 x 256 is a 16 x 16 plane. I2V and V2V
run over one set of spatial weights, trained on from T2I's.
"""

import dataclasses

from mv2_jax.config import (
    ControlNetConfig,
    ImageProjectionConfig,
    MotionConfig,
    ScheduleConfig,
    StageConfig,
    TextConfig,
    UNetConfig,
    VisionConfig,
)
from mv2_jax.configs.toybox.vae import VAE

KEYFRAMES = 8
WIDTH = 128  # of text states and image tokens

TEXT = TextConfig(
    vocab_size=0,  # the tokenizer's, filled in by the task
    max_length=20,  # captions have at most 18 words
    width=WIDTH,
    layers=3,
    heads=4,
    mlp_width=256,
    activation="gelu",
    eos_token_id=3,
)
VISION = VisionConfig(
    image_size=64,
    patch_size=8,
    width=WIDTH,
    layers=3,
    heads=4,
    mlp_width=256,
    projection=None,
)
PROJECTION = ImageProjectionConfig(
    kind="resampler",
    in_width=WIDTH,
    width=WIDTH,
    out_width=WIDTH,
    tokens=8,
    depth=1,
    heads=4,
    head_width=32,
    mlp_ratio=2,
)
# Widths are powers of two: XLA's convolutions on CPUs are several times slower at 96 or 112.
# The outer level, 16 x 16 for 256 pixels, is what draws outlines: over latents packed to 8 x 8 a
# network of twice the width there made blots of most things. Attention is at 8 x 8 and 4 x 4.
SPATIAL = UNetConfig(
    in_channels=VAE.plane_channels,
    out_channels=VAE.plane_channels,
    channels=(64, 128, 128),
    layers_per_block=1,
    transformers=(0, 1, 1),
    mid_transformers=1,
    heads=(4, 4, 4),
    context_width=WIDTH,
    norm_groups=32,
    linear_projection=True,
)
MOTION = MotionConfig(max_frames=8, heads=4, layers=1, attentions=1, norm_groups=32, mlp_ratio=1)
VIDEO = dataclasses.replace(SPATIAL, motion=MOTION, image_tokens=True)
# The ControlNet's body sees the picture's layout; what the words say comes by the UNet's attention.
CONTROL = ControlNetConfig(
    unet=dataclasses.replace(SPATIAL, transformers=(0, 0, 0), mid_transformers=0),
    condition_channels=(64, 64),
    condition_patch=8,
)
# AnimateDiff's schedule. Its last step keeps a little signal (sigma / alpha is 25), which is what
# the latent noise prior speaks through; a zero-terminal-SNR schedule would silence it.
SCHEDULE = ScheduleConfig(kind="linear", prediction="v", spacing="trailing", final_alpha_one=True)

T2I = StageConfig(SPATIAL, SCHEDULE, (256, 256), steps=20)
I2V = StageConfig(VIDEO, SCHEDULE, (192, 192), frames=KEYFRAMES, steps=20)
V2V = StageConfig(VIDEO, SCHEDULE, (256, 256), frames=KEYFRAMES, steps=20)
