"""V2V of the toybox: I2V's motion modules trained further at 256 x 256, all else as it is."""

from dataclasses import asdict

from ml_collections import ConfigDict

from mv2_jax.config import to_dict
from mv2_jax.configs.toybox import sizes
from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.train.phase import phase, recipe

FROM_I2V = ("text_encoder", "spatial", "motion_i2v", "image_encoder", "image_attn", "control")


def get_config() -> ConfigDict:
    return recipe(
        v2v=phase(
            "v2v",
            begin={
                "vae": "toybox/vae",
                **dict.fromkeys(FROM_I2V, "toybox/i2v"),
            },
            train=("motion",),
            steps=5_000,
            batch=4,
            max_minutes=12.0,
            model={"v2v": to_dict(sizes.V2V)},
            data={
                "count": 1024,
                "shard": 64,
                "image_every": 0,
                "decoded": 0.5,
                "motions": {"spinning": 5.0},
            },
            loss={"drop_text": 0.1, "drop_image": 0.1, "shape": asdict(LossConfig(shift=0.35))},
            sample={"guidance": 4.0, "image_guidance": 1.5, "strength": 0.5, "steps": 20},
            optim={"lr": 3e-4, "schedule": "warmup_stable_decay", "clock": "time"},
            ema={"decay": 0.999},
        )
    )
