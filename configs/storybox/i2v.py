"""I2V of the storybox: motion, appearance encoder, ControlNet, and spatial weights from T2I's."""

from dataclasses import asdict

from ml_collections import ConfigDict

from mv2_jax.config import to_dict
from mv2_jax.configs.storybox import sizes
from mv2_jax.configs.toybox.i2v import ADDED
from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.train.phase import phase, recipe


def get_config() -> ConfigDict:
    shared = {
        "begin": {
            "vae": "storybox/vae",
            "text_encoder": "storybox/t2i",
            "spatial": "storybox/t2i",
        },
        "steps": 40_000,
        "batch": 4,
        "max_minutes": 120.0,
        "model": {
            "i2v": to_dict(sizes.I2V),
            "vision": to_dict(sizes.VISION),
            "projection": to_dict(sizes.PROJECTION),
            "control": to_dict(sizes.CONTROL),
        },
        "data": {
            "source": "storybox",
            "count": 8192,
            "shard": 64,
            "image_every": 4,
            "image_batch": 16,
            "decoded": 0.5,
        },
        "loss": {"drop_text": 0.1, "drop_image": 0.1, "shape": asdict(LossConfig(shift=1.5))},
        "sample": {"guidance": 4.0, "image_guidance": 1.5, "steps": 20},
        "optim": {"lr": 1e-3, "schedule": "warmup_stable_decay", "clock": "time"},
        "ema": {"decay": 0.999},
    }
    # What first frames do not show (which way, how fast) the text encoder learns from clips alone.
    everything = {**shared, "optim": {**shared["optim"], "lr": 4e-4}}
    return recipe(
        i2v=phase("i2v", train=("text_encoder", *ADDED), **shared),
        all=phase("i2v", seed=1, train=("text_encoder", "spatial", *ADDED), **everything),
    )
