"""The judge of the toybox: what says whether a video shows what its prompt asked for."""

from ml_collections import ConfigDict

from mv2_jax.config import JudgeConfig, to_dict
from mv2_jax.train.phase import phase, recipe


def get_config() -> ConfigDict:
    return recipe(
        judge=phase(
            "judge",
            steps=1500,
            batch=32,
            model={"judge": to_dict(JudgeConfig())},
            optim={"lr": 1.5e-3, "warmup": 50, "schedule": "cosine", "clock": "time"},
            ema={"decay": 0.99},
            max_minutes=10.0,
        )
    )
