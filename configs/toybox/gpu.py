"""The whole toybox on one GPU, in phases of eight minutes (see `configs.gpu`)."""

from ml_collections import ConfigDict

from mv2_jax.configs import gpu
from mv2_jax.configs.toybox import i2v, pack, t2i, v2v, vae
from mv2_jax.train.phase import packing, recipe


def get_config() -> ConfigDict:
    def of(own, name: str, seed: int) -> ConfigDict:
        made = own.get_config().phases[name]
        made.seed, made.begin = seed, ConfigDict()  # the chain gives it
        return made

    return recipe(
        packing(defaults=pack.get_config().pack.defaults.to_dict()),
        **{f"vae{i}": gpu.phase(of(vae, "vae", i), 64, steps_per_call=1) for i in (1, 2)},
        detail=gpu.phase(of(vae, "detail", 3), 64, steps_per_call=1),
        **{f"t2i{i}": gpu.phase(of(t2i, "t2i", i), 512, data={"sizes": (256,)}) for i in (1, 2)},
        outlines=gpu.phase(of(t2i, "outlines", 3), 512, data={"sizes": (256,)}),
        i2v1=gpu.phase(of(i2v, "words", 1), 64),
        **{f"i2v{i}": gpu.phase(of(i2v, "outlines", i), 64) for i in (2, 3)},
        v2v=gpu.phase(of(v2v, "v2v", 1), 64),
    )
