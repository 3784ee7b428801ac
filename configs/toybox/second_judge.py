"""A judge of another seed and another architecture, which reports what the first one ranked."""

from ml_collections import ConfigDict

from mv2_jax.config import JudgeConfig, to_dict
from mv2_jax.train.phase import phase, recipe

SECOND = JudgeConfig(size=64, frame_channels=(32, 64, 96), motion_channels=(48, 96), hidden=128)


def get_config() -> ConfigDict:
    return recipe(
        judge=phase(
            "judge",
            seed=20,
            steps=3000,
            batch=32,
            model={"judge": to_dict(SECOND)},
            optim={"lr": 1.5e-3, "warmup": 50, "schedule": "cosine"},
            ema={"decay": 0.99},
        )
    )
