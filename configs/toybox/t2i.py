"""Text encoder and spatial UNet of the toybox, over the autoencoder of toybox/vae."""

from dataclasses import asdict

from ml_collections import ConfigDict

from mv2_jax.config import to_dict
from mv2_jax.configs.toybox import sizes
from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.train.phase import phase, recipe


def get_config() -> ConfigDict:
    return recipe(
        t2i=phase(
            "t2i",
            begin={"vae": "toybox/vae"},
            steps=40_000,
            batch=32,
            max_minutes=62.0,
            model={"text": to_dict(sizes.TEXT), "t2i": to_dict(sizes.T2I)},
            data={"sizes": (256, 192), "count": 16_384, "shard": 512},
            loss={"drop_text": 0.1, "shape": asdict(LossConfig())},
            sample={"guidance": 4.0, "steps": 20},
            optim={"lr": 1e-3, "schedule": "warmup_stable_decay", "clock": "time"},
            ema={"decay": 0.999},
        )
    )
