"""The storybox's cascade folder, from the weights of storybox/vae, t2i, i2v and v2v."""

from ml_collections import ConfigDict

from mv2_jax.train.phase import packing, recipe

DEFAULTS = {
    "t2i": {"steps": 10, "guidance": 4.0},
    "i2v": {"steps": 10, "guidance": 4.0, "image_guidance": 1.5, "noise_prior": 1.0},
    "v2v": {"steps": 10, "guidance": 1.5, "image_guidance": 1.0, "strength": 0.3},
}


def get_config() -> ConfigDict:
    sources = ("storybox/vae", "storybox/t2i", "storybox/i2v", "storybox/v2v")
    return recipe(packing(name="storybox", sources=sources, defaults=DEFAULTS))
