"""A whole cascade of networks of nothing, with random weights: every stage runs in a moment."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np

from mv2_jax import bundle, cascade, params
from mv2_jax.config import (
    ControlNetConfig,
    ImageProjectionConfig,
    MotionConfig,
    RIFEConfig,
    ScheduleConfig,
    StageConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
    VisionConfig,
)
from mv2_jax.models.vae import AutoencoderKL
from mv2_jax.stages import stage as stages
from mv2_jax.text import WordTokenizer
from mv2_jax.toybox import captions

VAE = VAEConfig(channels=(8,), layers_per_block=1, norm_groups=4, mid_attention=False, patch_size=8)
SCHEDULE = ScheduleConfig(kind="linear", prediction="v", spacing="trailing", final_alpha_one=True)
SPATIAL = UNetConfig(
    channels=(8,), layers_per_block=1, transformers=(1,), heads=(2,), context_width=8, norm_groups=4
)
MOTION = MotionConfig(max_frames=3, heads=2, norm_groups=4, attentions=1)
WORDS = WordTokenizer(captions.VOCABULARY, max_length=20)
TEXT = TextConfig(
    vocab_size=WORDS.vocab_size,
    max_length=20,
    width=8,
    layers=1,
    heads=2,
    mlp_width=16,
    eos_token_id=WORDS.eos_token_id,
)
VISION = VisionConfig(16, 8, 8, 1, 2, 16, projection=None)
PROJECTION = ImageProjectionConfig("resampler", 8, 8, 8, 2, 1, 2, 4)
CONTROL = ControlNetConfig(SPATIAL, (8, 8), 4)
INFLATED = dataclasses.replace(SPATIAL, motion=MOTION, image_tokens=True)
PICTURE = StageConfig(SPATIAL, SCHEDULE, (48, 48), steps=2)
KEYFRAMES = StageConfig(INFLATED, SCHEDULE, (32, 32), frames=3, steps=2)
REFINED = StageConfig(INFLATED, SCHEDULE, (48, 48), frames=3, steps=2)
RIFE_SIZES = RIFEConfig()


def random(shapes, seed):
    """Values for a tree of shapes, spread as a fresh network's: nothing has to be compiled."""
    rng, out = np.random.default_rng(seed), {}
    for name, leaf in params.flatten(shapes).items():
        spread = 1 / math.sqrt(max(1, math.prod(leaf.shape[:-1])))
        centre = 1.0 if name.endswith("scale") else 0.0
        out[name] = np.float32(centre + spread * rng.standard_normal(leaf.shape))
    return params.unflatten(out)


NETWORKS = {
    "text_encoder": TEXT,
    "image_encoder": VISION,
    "image_attn": PROJECTION,
    "control": CONTROL,
}


def stage(config, name="i2v"):
    """A stage, put together."""
    return stages.build(name, config, NETWORKS, VAE.factor)


def make(rife=None) -> cascade.Cascade:
    """The cascade; `rife` is an interpolator's tree where its stage is to run."""
    key, clip = jax.random.key(0), stage(KEYFRAMES)
    shapes = jax.eval_shape(lambda k: stages.init(clip, k), key)
    trees = random(shapes, 1)
    pixels = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    vae = jax.eval_shape(AutoencoderKL(VAE).init, key, pixels)
    named = {name: tree for name, tree in trees.items() if name != "motion"}
    motions = {"motion_i2v": trees["motion"], "motion_v2v": random(shapes["motion"], 2)}
    rest = {"vae": random(vae["params"], 3), "interpolator": rife}
    return cascade.Cascade(
        params={**named, **motions, **rest},
        tokenizer=WORDS,
        vae=VAE,
        interpolator=RIFE_SIZES,
        picture=stage(PICTURE, "t2i"),
        keyframes=stage(KEYFRAMES),
        refined=stage(REFINED, "v2v"),
        dtype=np.float32,
    )


def write(folder, four: cascade.Cascade) -> bundle.Bundle:
    """The cascade as a folder, without an interpolator and with no frames to put in between."""
    configs = {
        **NETWORKS,
        "vae": VAE,
        "spatial": SPATIAL,
        "motion_i2v": MOTION,
        "motion_v2v": MOTION,
    }
    parts = {
        name: bundle.Part(four.params[name], config, "Apache-2.0", "random numbers")
        for name, config in configs.items()
    }
    stages = {"t2i": PICTURE, "i2v": KEYFRAMES, "v2v": REFINED}
    defaults = {"vfi": {"between": 0}}
    return bundle.write(folder, parts, stages, WORDS.to_json(), name="tiny", defaults=defaults)
