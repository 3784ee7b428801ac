"""V2V of a converted cascade on your own clips and pictures: its motion modules.

mv2 train own/v2v --set cascade=my-cascade data.root=clips
"""

from ml_collections import ConfigDict

from mv2_jax.configs.own import clips


def get_config() -> ConfigDict:
    return clips("v2v")
