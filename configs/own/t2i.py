"""T2I of a converted cascade on your own pictures: its UNet, text encoder left as it is.

mv2 train own/t2i --set cascade=my-cascade data.root=pictures
"""

from dataclasses import asdict

from ml_collections import ConfigDict

from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.train.media.settings import data
from mv2_jax.train.phase import packing, phase, recipe


def get_config() -> ConfigDict:
    return recipe(
        packing(name="own", licence="as the cascade's and the data's"),
        t2i=phase(
            "t2i",
            cascade="",  # a cascade folder; name it
            size=(),  # (height, width); empty: the cascade's
            train=("spatial",),
            steps=10_000,
            batch=4,
            data=data(aspects=True, crop="random"),
            model={},
            loss={"drop_text": 0.1, "shape": asdict(LossConfig())},
            sample={"guidance": 7.5, "steps": 25},
            optim={"lr": 1e-5, "schedule": "constant", "warmup": 500},
            ema={"decay": 0.9999},
        ),
    )
