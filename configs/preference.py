"""Learning from people: Diffusion-DPO on the votes of an arena: I2V's motion from clips,
then T2I's UNet from first frames, packed with the rest of the cascade.

mv2 train preference --votes judged/arena.db
"""

from dataclasses import asdict

from ml_collections import ConfigDict

from mv2_jax import bundle
from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.train.phase import packing, phase, recipe


def _arm(stage: str) -> ConfigDict:
    pictures = stage == "t2i"
    return phase(
        "votes",
        stage=stage,
        cascade=str(bundle.SHIPPED),  # a cascade folder
        train=("spatial",) if pictures else ("motion",),
        steps=300 if pictures else 200,
        batch=8 if pictures else 2,  # pairs
        sample_minutes=0.0,
        model={},
        data={
            "votes": "",  # an arena's arena.db, or its folder
            "criterion": "overall",  # quality, consistency, structure
            "margin": 0.0,  # the least lead, as a share of a comparison's votes
        },
        loss={
            "kind": "dpo",  # or winners
            "beta": 2000.0,
            "drop_text": 0.0,
            **({} if pictures else {"drop_image": 0.0}),
            "shape": asdict(LossConfig()),
        },
        optim={"lr": 5e-5, "warmup": 25, "schedule": "constant", "weight_decay": 0.0},
        ema={"decay": 0.99},
    )


def get_config() -> ConfigDict:
    pack = packing(name="preferred", licence="as the cascade's and the videos'")
    # In this order: clips would begin from the UNet of pictures, which is T2I's own.
    return recipe(pack, clips=_arm("i2v"), pictures=_arm("t2i"))
