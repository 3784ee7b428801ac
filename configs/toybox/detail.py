"""The decoder of toybox/vae trained on against a critic: fine detail that latents do not hold is
drawn as renders have it, in place of averaged. The latents stay as they are.

The cascade that ships was not made with it.
"""

from ml_collections import ConfigDict

from mv2_jax.configs.toybox.vae import SHARED
from mv2_jax.train.phase import phase, recipe


def get_config() -> ConfigDict:
    settings = {
        **SHARED,
        "loss": {**SHARED["loss"], "critic": 0.3, "critic_from": 100},
        "optim": {**SHARED["optim"], "lr": 5e-4},
    }
    return recipe(
        detail=phase(
            "vae",
            seed=2,
            begin={"vae": "toybox/vae"},
            max_minutes=15.0,
            train=("decoder",),
            critic={"width": 32, "layers": 2},
            **settings,
        )
    )
