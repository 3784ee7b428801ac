"""The appearance encoder of I2V and V2V over SDXL on your own clips, alone.

mv2 train sdxl/appearance --set cascade=my-cascade data.root=clips
"""

from ml_collections import ConfigDict

from mv2_jax.configs.own import clips
from mv2_jax.configs.sdxl import TRAINING


def get_config() -> ConfigDict:
    return clips(
        "i2v",
        **{**TRAINING, "train": ("image_attn",), "loss": {"drop_text": 0.05, "drop_image": 0.05}},
    )
