"""I2V over SDXL on your own clips: its motion modules.

mv2 train sdxl/i2v --set cascade=my-cascade data.root=clips
"""

from ml_collections import ConfigDict

from mv2_jax.configs.own import clips
from mv2_jax.configs.sdxl import TRAINING


def get_config() -> ConfigDict:
    return clips("i2v", **TRAINING)
