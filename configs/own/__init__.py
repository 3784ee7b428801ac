"""Recipes that train a converted cascade on your own clips and pictures."""

from dataclasses import asdict

from ml_collections import ConfigDict

from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.train.media.settings import data
from mv2_jax.train.phase import packing, phase, recipe


def clips(stage: str) -> ConfigDict:
    """The recipe of a stage that learns from clips, "i2v" or "v2v": its motion modules, as the
    paper trains them: jointly on clips and, where `data.image_every` says so, on pictures."""
    learnt = phase(
        stage,
        cascade="",  # a cascade folder; name it
        size=(),  # (height, width); empty: the cascade's
        frames=0,  # of a clip; 0: the cascade's
        train=("motion",),  # beside: image_encoder, image_attn, control, spatial, text_encoder
        steps=20_000,
        batch=1,
        remat=True,
        data=data(image_every=0, image_batch=4),
        model={},
        loss={"drop_text": 0.1, "drop_image": 0.1, "shape": asdict(LossConfig())},
        sample={"guidance": 7.5, "image_guidance": 1.5, "steps": 25, "strength": 0.6},
        optim={"lr": 1e-5, "schedule": "constant", "warmup": 500},
        ema={"decay": 0.9999},
    )
    return recipe(packing(name="own", licence="as the cascade's and the data's"), **{stage: learnt})
