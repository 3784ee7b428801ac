"""A cascade of few steps: the shipped one, with what toybox/few made of its stages."""

from ml_collections import ConfigDict

from mv2_jax.bundle import SHIPPED
from mv2_jax.train.phase import packing, recipe

STAGES = ("t2i", "i2v", "v2v")


def get_config() -> ConfigDict:
    sources = (str(SHIPPED), *(f"toybox/few/{stage}" for stage in STAGES))
    return recipe(packing(sources=sources))
