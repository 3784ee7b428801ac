"""The ControlNet of I2V and V2V over SDXL on your own clips, alone.

mv2 train sdxl/controlnet --set cascade=my-cascade data.root=clips
"""

from ml_collections import ConfigDict

from mv2_jax.configs.own import clips
from mv2_jax.configs.sdxl import TRAINING


def get_config() -> ConfigDict:
    return clips("i2v", **{**TRAINING, "train": ("control",), "optim": {"lr": 1e-5}})
