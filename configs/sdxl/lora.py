"""A LoRA of I2V over SDXL on your own clips: spatial weights and motion modules.

mv2 train sdxl/lora --set cascade=my-cascade data.root=clips

The files for other programs lie in runs/sdxl/lora/cascade beside the networks.
"""

from ml_collections import ConfigDict

from mv2_jax.configs.own import clips, low_rank
from mv2_jax.configs.sdxl import TRAINING


def get_config() -> ConfigDict:
    return clips("i2v", **{**TRAINING, "train": ("spatial", "motion"), **low_rank(16)})
