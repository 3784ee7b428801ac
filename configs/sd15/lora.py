"""A LoRA of I2V over SD1.5 on your own clips: spatial weights and motion modules.

mv2 train sd15/lora --set cascade=my-cascade data.root=clips

The files for other programs lie in runs/sd15/lora/cascade beside the networks.
"""

from ml_collections import ConfigDict

from mv2_jax.configs.own import clips, low_rank
from mv2_jax.configs.sd15 import TRAINING


def get_config() -> ConfigDict:
    return clips("i2v", **{**TRAINING, "train": ("spatial", "motion"), **low_rank(16)})
