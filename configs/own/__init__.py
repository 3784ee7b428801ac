"""Recipes that train a converted cascade on your own clips and pictures.

`configs.sd15` and `configs.sdxl` have the same for cascades of one kind, with what is known to suit
its networks.
"""

from dataclasses import asdict
from typing import Any

from ml_collections import ConfigDict

from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.train.media.settings import data
from mv2_jax.train.phase import packing, phase, recipe

ATTENTION = r"/to_[qkv]/|/to_out_0/|/(q|k|v|out)_proj/"  # what most LoRAs adapt


def clips(stage: str, **changes: Any) -> ConfigDict:
    """The recipe of a stage that learns from clips, "i2v" or "v2v": its motion modules, as the
    paper trains them: jointly on clips and, where `data.image_every` says so, on pictures."""
    settings = {
        "cascade": "",  # a cascade folder; name it
        "size": (),  # (height, width); empty: the cascade's
        "frames": 0,  # of a clip; 0: the cascade's
        "train": ("motion",),  # beside: image_encoder, image_attn, control, spatial, text_encoder
        "steps": 20_000,
        "batch": 1,
        "remat": True,
        "data": data(),
        "model": {},
        "loss": {"drop_text": 0.1, "drop_image": 0.1, "shape": asdict(LossConfig())},
        # A number for the picture is for cascades whose guidance has a scale for it ("apart").
        "sample": {"guidance": 7.5, "image_guidance": None, "steps": 25}
        | ({"strength": 0.6} if stage == "v2v" else {}),
        "optim": {"lr": 1e-5, "schedule": "constant", "warmup": 500},
        "ema": {"decay": 0.9999},
    }
    return _packed(**{stage: phase(stage, **_changed(settings, changes))})


def pictures(**changes: Any) -> ConfigDict:
    """The recipe of T2I, which learns from pictures or frames of clips."""
    settings = {
        "cascade": "",  # a cascade folder; name it
        "size": (),  # (height, width); empty: the cascade's
        "train": ("spatial",),
        "steps": 10_000,
        "batch": 4,
        "data": data(aspects=True, crop="random"),
        "model": {},
        "loss": {"drop_text": 0.1, "shape": asdict(LossConfig())},
        "sample": {"guidance": 7.5, "steps": 25},
        "optim": {"lr": 1e-5, "schedule": "constant", "warmup": 500},
        "ema": {"decay": 0.9999},
    }
    return _packed(t2i=phase("t2i", **_changed(settings, changes)))


def low_rank(rank: int) -> dict[str, Any]:
    """The settings of a LoRA of all attention, for either of the above."""
    return {
        "lora": {"rank": rank, "alpha": float(rank), "match": ATTENTION},
        "steps": 3_000,
        "optim": {"lr": 1e-4, "warmup": 100, "weight_decay": 0.0},
        "ema": {"decay": 0.99},
    }


def _changed(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The settings with others; dicts merge."""
    merged = {name: {**settings[name], **value} for name, value in changes.items()
              if isinstance(value, dict) and name in settings}  # fmt: skip
    return {**settings, **changes, **merged}


def _packed(**phases: ConfigDict) -> ConfigDict:
    return recipe(packing(name="own", licence="as the cascade's and the data's"), **phases)
