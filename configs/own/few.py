"""A stage of a converted cascade distilled to few steps on your own clips and pictures, by default
as a LoRA, whose files diffusers and kohya's programs read.

mv2 train own/few --set cascade=my-cascade data.root=pictures
"""

from ml_collections import ConfigDict

from mv2_jax.configs.toybox import few
from mv2_jax.train.media.settings import data
from mv2_jax.train.phase import packing, recipe


def get_config() -> ConfigDict:
    return recipe(
        packing(name="own", licence="as the cascade's and the data's"),
        few=few.distilled(
            "t2i",  # or i2v, v2v, whose `train` is ("motion",)
            cascade="",  # a cascade folder; name it
            size=(),  # (height, width); empty: the cascade's
            train=("spatial",),
            lora={"rank": 64, "alpha": 64.0},
            remat=True,
            frozen_dtype="fp16",
            steps=2_000,
            batch=4,
            data=data(aspects=True, crop="random"),
            optim={"lr": 1e-4, "schedule": "constant", "warmup": 100},
            ema={"decay": 0.95},
        ),
    )
