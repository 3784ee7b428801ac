"""T2I of a converted cascade on your own pictures: its UNet, text encoder left as it is.

mv2 train own/t2i --set cascade=my-cascade data.root=pictures
"""

from ml_collections import ConfigDict

from mv2_jax.configs.own import pictures


def get_config() -> ConfigDict:
    return pictures()
