"""V2V of the storybox: I2V's motion modules trained further, all else as it is."""

from dataclasses import asdict

from ml_collections import ConfigDict

from mv2_jax.config import to_dict
from mv2_jax.configs.storybox import sizes
from mv2_jax.configs.toybox.v2v import FROM_I2V
from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.train.phase import phase, recipe


def get_config() -> ConfigDict:
    return recipe(
        v2v=phase(
            "v2v",
            begin={"vae": "storybox/vae", **dict.fromkeys(FROM_I2V, "storybox/i2v")},
            train=("motion",),
            steps=10_000,
            batch=4,
            max_minutes=30.0,
            model={"v2v": to_dict(sizes.V2V)},
            data={
                "source": "storybox",
                "count": 1024,
                "shard": 64,
                "image_every": 0,
                "decoded": 0.5,
            },
            loss={"drop_text": 0.1, "drop_image": 0.1, "shape": asdict(LossConfig(shift=0.35))},
            sample={"guidance": 4.0, "image_guidance": 1.5, "strength": 0.5, "steps": 20},
            optim={"lr": 3e-4, "schedule": "warmup_stable_decay", "clock": "time"},
            ema={"decay": 0.999},
        )
    )
