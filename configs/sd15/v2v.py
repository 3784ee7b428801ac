"""V2V over SD1.5 on your own clips: its motion modules.

mv2 train sd15/v2v --set cascade=my-cascade data.root=clips
"""

from ml_collections import ConfigDict

from mv2_jax.configs.own import clips
from mv2_jax.configs.sd15 import TRAINING


def get_config() -> ConfigDict:
    return clips("v2v", **TRAINING)
