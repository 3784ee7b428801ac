"""Text encoder and spatial UNet of the toybox, over the autoencoder of toybox/vae."""

from dataclasses import asdict

from ml_collections import ConfigDict

from mv2_jax.config import to_dict
from mv2_jax.configs.toybox import sizes
from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.train.phase import phase, recipe

# Half of the steps have at most 1.2 times as much noise as signal, where uniform ones have 2.3.
LESS_NOISE = LossConfig(sampling="logit_normal", location=-0.7, scale=1.3)


def get_config() -> ConfigDict:
    shared = {
        "begin": {"vae": "toybox/vae"},
        "steps": 40_000,
        "batch": 32,
        "model": {"text": to_dict(sizes.TEXT), "t2i": to_dict(sizes.T2I)},
        "loss": {"drop_text": 0.1, "shape": asdict(LossConfig())},
        "sample": {"guidance": 4.0, "steps": 20},
        "ema": {"decay": 0.999},
    }
    optim = {"lr": 1e-3, "schedule": "warmup_stable_decay", "clock": "time"}
    data = {"sizes": (256, 192), "count": 16_384, "shard": 512}
    return recipe(
        t2i=phase("t2i", max_minutes=62.0, data=data, optim=optim, **shared),
        # On from there, over other worlds each time.
        longer=phase("t2i", seed=1, max_minutes=22.0, data=data, optim=optim, **shared),
        longest=phase("t2i", seed=2, max_minutes=62.0, data=data, optim=optim, **shared),
        # And again, less noisy steps oftener: outlines, which were wobbly still, are decided there.
        outlines=phase(
            "t2i",
            seed=3,
            max_minutes=55.0,
            data=data,
            optim=optim,
            **{**shared, "loss": {"drop_text": 0.1, "shape": asdict(LESS_NOISE)}},
        ),
    )
