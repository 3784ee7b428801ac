"""The ControlNet of I2V and V2V over SD1.5 on your own clips, alone.

mv2 train sd15/controlnet --set cascade=my-cascade data.root=clips
"""

from ml_collections import ConfigDict

from mv2_jax.configs.own import clips
from mv2_jax.configs.sd15 import TRAINING


def get_config() -> ConfigDict:
    return clips("i2v", **{**TRAINING, "train": ("control",), "optim": {"lr": 1e-5}})
