"""A LoRA of T2I over SD1.5 on your own pictures, its style or subject.

mv2 train sd15/t2i_lora --set cascade=my-cascade data.root=pictures

The files for other programs lie in runs/sd15/t2i_lora/cascade beside the networks.
"""

from ml_collections import ConfigDict

from mv2_jax.configs.own import low_rank, pictures
from mv2_jax.configs.sd15 import TRAINING


def get_config() -> ConfigDict:
    return pictures(**{**TRAINING, "remat": False, **low_rank(16)})
