"""Preference on the toybox: Diffusion-DPO on pairs that a judge ranked, and as many steps of
fine-tuning on the winners, for pictures and for clips. Not as much work: a step of DPO sees both
halves of a pair, and the network as it was besides.

The pictures' arms change T2I's UNet alone: the video stages have spatial weights of their own.
"""

from dataclasses import asdict

from ml_collections import ConfigDict

from mv2_jax.config import to_dict
from mv2_jax.configs.toybox import sizes
from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.train.phase import arms, phase

PICTURES = {"vae": "toybox/vae", "text_encoder": "toybox/t2i", "spatial": "toybox/t2i"}
CLIPS = ("text_encoder", "spatial", "motion_i2v", "image_encoder", "image_attn", "control")


def _arm(stage: str, kind: str) -> ConfigDict:
    pictures = stage == "t2i"
    return phase(
        "dpo",
        stage=stage,
        begin=PICTURES if pictures else {**PICTURES, **dict.fromkeys(CLIPS, "toybox/i2v")},
        train=("spatial",) if pictures else ("motion",),
        steps=300 if pictures else 200,
        batch=16 if pictures else 4,
        sample_minutes=0.0,
        model={stage: to_dict(sizes.T2I if pictures else sizes.I2V)},
        data={
            "count": 512 if pictures else 96,  # pairs
            "margin": 0.1,  # of the judge's log-probabilities; pairs that differ by less are ties
            "shard": 128 if pictures else 32,
            "chunk": 16 if pictures else 4,  # prompts whose candidates are made at a time
            "candidates": 4,
            # Of clips: where the shipped cascade has something to gain.
            "motions": {} if pictures else {"spinning": 5.0},
            "judge": "",  # its file; empty: the one that ships
        },
        loss={
            "kind": kind,
            **({"beta": 2000.0} if kind == "dpo" else {}),
            "drop_text": 0.0,
            **({} if pictures else {"drop_image": 0.0}),
            "shape": asdict(LossConfig()),
        },
        sample={"guidance": 4.0, **({} if pictures else {"image_guidance": 1.5}), "steps": 15},
        optim={"lr": 5e-5, "warmup": 25, "schedule": "constant", "weight_decay": 0.0},
        ema={"decay": 0.99},
    )


def get_config() -> ConfigDict:
    return arms(
        pictures=_arm("t2i", "dpo"),
        pictures_winners=_arm("t2i", "winners"),
        clips=_arm("i2v", "dpo"),
        clips_winners=_arm("i2v", "winners"),
    )
