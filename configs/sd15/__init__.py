"""The cascade on Stable Diffusion 1.5: 16 frames of 512x512, for one consumer GPU.

An SD1.5 checkpoint, AnimateDiff v3, IP-Adapter-Plus with its ViT-H, and a ControlNet; T2I is the
same SD1.5. V2V refines at I2V's own size.
"""

from mv2_jax.config import (
    ControlNetConfig,
    ImageProjectionConfig,
    MotionConfig,
    RIFEConfig,
    ScheduleConfig,
    StageConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
    VisionConfig,
)

TEXT = TextConfig()
TEXT_2 = None
VAE = PICTURE_VAE = VAEConfig()
VISION = VisionConfig()
PROJECTION = ImageProjectionConfig()
CONTROL = ControlNetConfig()
RIFE = RIFEConfig()
SPATIAL = UNetConfig()
VIDEO = UNetConfig(motion=MotionConfig(), image_tokens=True)

# As both are published: SD1.5 has scaled betas, AnimateDiff over it linear ones.
STILL = ScheduleConfig(kind="scaled_linear")
MOVING = ScheduleConfig(kind="linear")

# Of guidance: what users of these checkpoints know from other pipelines.
RULE = "public"

T2I = StageConfig(SPATIAL, STILL, (512, 512), rule=RULE)
I2V = StageConfig(VIDEO, MOVING, (512, 512), frames=16, rule=RULE)
V2V = StageConfig(VIDEO, MOVING, (512, 512), frames=16, rule=RULE)
# AnimateDiff's clips run at 8 frames a second; VFI triples them. No public checkpoint was trained
# for the noise prior.
DEFAULTS = {
    "t2i": {"guidance": 7.5},
    "i2v": {"guidance": 7.5, "noise_prior": 0.0},
    "v2v": {"guidance": 7.5},
    "vfi": {"between": 2, "fps": 24},
}

# Of training its networks (configs/sd15/*.py): what is frozen lies on the device as folders store
# it. The rate is AnimateDiff's (arXiv 2307.04725) and IP-Adapter's (arXiv 2308.06721).
TRAINING = {"network": "sd15", "frozen_dtype": "fp16", "remat": True, "optim": {"lr": 1e-4}}
