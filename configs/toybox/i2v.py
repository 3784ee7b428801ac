"""I2V of the toybox: motion, appearance encoder and ControlNet over the weights of toybox/t2i."""

from dataclasses import asdict

from ml_collections import ConfigDict

from mv2_jax.config import to_dict
from mv2_jax.configs.toybox import sizes
from mv2_jax.configs.toybox.t2i import LESS_NOISE
from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.train.phase import phase, recipe

# What I2V has beside the networks of T2I.
ADDED = ("motion", "image_encoder", "image_attn", "control")


def get_config() -> ConfigDict:
    shared = {
        "begin": {"vae": "toybox/vae", "text_encoder": "toybox/t2i", "spatial": "toybox/t2i"},
        "steps": 20_000,
        "batch": 4,
        "model": {
            "i2v": to_dict(sizes.I2V),
            "vision": to_dict(sizes.VISION),
            "projection": to_dict(sizes.PROJECTION),
            "control": to_dict(sizes.CONTROL),
        },
        "sample": {"guidance": 4.0, "image_guidance": 1.5, "steps": 20},
        "optim": {"lr": 1e-3, "schedule": "warmup_stable_decay", "clock": "time"},
        "ema": {"decay": 0.999},
    }
    data = {"shard": 128, "image_every": 4, "image_batch": 16, "decoded": 0.5}
    loss = {"drop_text": 0.1, "drop_image": 0.1}
    everything = {
        **shared,
        "train": ("text_encoder", "spatial", *ADDED),
        "data": {"count": 8192, "motions": {"spinning": 5.0}, **data},
        "loss": {**loss, "shape": asdict(LossConfig(shift=1.5))},
        "optim": {**shared["optim"], "lr": 4e-4},
    }
    return recipe(
        i2v=phase(
            "i2v",
            train=ADDED,
            max_minutes=42.0,
            data={"count": 4096, **data},
            loss={**loss, "shape": asdict(LossConfig())},
            **shared,
        ),
        # T2I's text encoder has seen first frames alone, and those of falling and of bouncing
        # things are alike: it makes one word of the two. What tells them apart can only be learnt
        # from clips, so the video stages train a text encoder of their own from T2I's. The shift
        # is towards the noisy steps, where a clip's motion is decided.
        words=phase(
            "i2v",
            train=("text_encoder", *ADDED),
            max_minutes=72.0,
            data={"count": 8192, **data},
            loss={**loss, "shape": asdict(LossConfig(shift=2.0))},
            **shared,
        ),
        # T2I's UNet has seen things upright alone, as first frames show them, and what spins melted
        # half-way round. So the video stages' spatial weights are trained on from T2I's, on clips
        # of which two in five spin.
        turning=phase("i2v", max_minutes=48.0, **everything),
        # The same again: what spins was still right in less than half of all videos.
        steadier=phase("i2v", seed=1, max_minutes=60.0, **everything),
        # And again, over other clips: outlines still melted on their way.
        steadiest=phase("i2v", seed=2, max_minutes=72.0, **everything),
        # Over the same clips again, less noisy steps oftener, as in T2I's last phase: all phases
        # above drew the noisy ones oftener, and outlines are decided later.
        outlines=phase(
            "i2v",
            seed=2,
            max_minutes=55.0,
            **{**everything, "loss": {**loss, "shape": asdict(LESS_NOISE)}},
        ),
    )
