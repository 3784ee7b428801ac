"""Toybox in few steps: each stage of the shipped cascade distilled from itself, guidance and all.

Another cascade's, packed by `mv2 train toybox/pack`: --set cascade=FOLDER.
"""

from dataclasses import asdict

from ml_collections import ConfigDict

from mv2_jax.bundle import SHIPPED
from mv2_jax.diffusion.distillation import Distillation
from mv2_jax.train.phase import arms, phase


def distilled(stage: str, **settings: dict) -> ConfigDict:
    """A phase that teaches a stage to do without guidance in few steps."""
    shared = {
        "stage": stage,
        "cascade": str(SHIPPED),
        "teacher": {},  # numbers that guide it; empty: those that the cascade likes best
        "distil": asdict(Distillation()),
        "student": {"steps": 4},
        "model": {},
        "optim": {"lr": 2e-4, "schedule": "warmup_stable_decay", "clock": "time"},
        "ema": {"decay": 0.999},
    }
    return phase("distil", **{**shared, **settings})


def get_config() -> ConfigDict:
    clips = {"count": 4096, "shard": 128, "image_every": 0, "decoded": 0.5}
    clips["motions"] = {"spinning": 5.0}
    return arms(
        t2i=distilled(
            "t2i",
            train=("spatial",),
            steps=20_000,
            batch=32,
            max_minutes=100.0,
            data={"sizes": (256,), "count": 16_384, "shard": 512},
        ),
        # The spatial weights are V2V's, too: motion modules, which each has for itself, learn.
        i2v=distilled(
            "i2v", train=("motion",), steps=20_000, batch=4, max_minutes=100.0, data=clips
        ),
        # Of V2V's chain no more than the last part is run: at a strength of 0.3 two steps of eight.
        v2v=distilled(
            "v2v",
            train=("motion",),
            steps=10_000,
            batch=4,
            max_minutes=60.0,
            distil=asdict(Distillation(part=0.5)),
            student={"steps": 8},
            data={**clips, "count": 1024, "shard": 64},
        ),
    )
