"""Text encoder and spatial UNet of the storybox, over the autoencoder of storybox/vae."""

from dataclasses import asdict

from ml_collections import ConfigDict

from mv2_jax.config import to_dict
from mv2_jax.configs.storybox import sizes
from mv2_jax.configs.toybox.t2i import LESS_NOISE
from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.train.phase import phase, recipe


def get_config() -> ConfigDict:
    def pictures(seed: int, shape: LossConfig) -> ConfigDict:
        return phase(
            "t2i",
            seed=seed,
            begin={"vae": "storybox/vae"},
            steps=80_000,
            batch=32,
            max_minutes=120.0,
            model={"text": to_dict(sizes.TEXT), "t2i": to_dict(sizes.T2I)},
            data={"source": "storybox", "sizes": (256,), "count": 32_768, "shard": 512},
            loss={"drop_text": 0.1, "shape": asdict(shape)},
            sample={"guidance": 4.0, "steps": 20},
            optim={"lr": 1e-3, "schedule": "warmup_stable_decay", "clock": "time"},
            ema={"decay": 0.999},
        )

    # Layout and colours first, then outlines, which less noisy steps decide.
    return recipe(t2i=pictures(0, LossConfig()), outlines=pictures(1, LESS_NOISE))
