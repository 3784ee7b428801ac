"""The judge of the toybox: what says whether a video shows what its prompt asked for."""

from ml_collections import ConfigDict

from mv2_jax.config import JudgeConfig, to_dict
from mv2_jax.train.phase import phase, recipe


def get_config() -> ConfigDict:
    sizes = {"judge": to_dict(JudgeConfig())}
    return recipe(
        judge=phase(
            "judge",
            steps=1500,
            batch=32,
            model=sizes,
            optim={"lr": 1.5e-3, "warmup": 50, "schedule": "cosine"},
            ema={"decay": 0.99},
        ),
        # Motions take longest, and their classifier shares nothing with the frames'.
        motion=phase(
            "judge",
            seed=1,
            steps=4000,
            batch=64,
            train=("motion",),
            model=sizes,
            optim={"lr": 1e-3, "warmup": 50, "schedule": "cosine"},
            ema={"decay": 0.995},
        ),
    )
