"""I2V of the toybox: motion, appearance encoder and ControlNet over the weights of toybox/t2i."""

from dataclasses import asdict

from ml_collections import ConfigDict

from mv2_jax.config import to_dict
from mv2_jax.configs.toybox import sizes
from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.train.phase import phase, recipe


def get_config() -> ConfigDict:
    return recipe(
        i2v=phase(
            "i2v",
            begin={"vae": "toybox/vae", "text_encoder": "toybox/t2i", "spatial": "toybox/t2i"},
            train=("motion", "image_encoder", "image_attn", "control"),
            steps=20_000,
            batch=4,
            max_minutes=42.0,
            model={
                "i2v": to_dict(sizes.I2V),
                "vision": to_dict(sizes.VISION),
                "projection": to_dict(sizes.PROJECTION),
                "control": to_dict(sizes.CONTROL),
            },
            data={
                "count": 4096,
                "shard": 128,
                "image_every": 4,
                "image_batch": 16,
                "decoded": 0.5,
            },
            loss={"drop_text": 0.1, "drop_image": 0.1, "shape": asdict(LossConfig())},
            sample={"guidance": 4.0, "image_guidance": 1.5, "steps": 20},
            optim={"lr": 1e-3, "schedule": "warmup_stable_decay", "clock": "time"},
            ema={"decay": 0.999},
        )
    )
