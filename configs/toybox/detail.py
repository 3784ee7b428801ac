"""A larger decoder for the latents of toybox/vae, with planes of up to a quarter of the frame.

The small one, which is trained with the encoder, draws 8 x 8 pixels at a time from 64 numbers.
Latents stay as they are, and so does all that was trained over them. The cascade that ships was
not made with it; for one that is, name toybox/detail after toybox/vae in toybox/pack's sources.
"""

from ml_collections import ConfigDict

from mv2_jax.configs.toybox.vae import SHARED
from mv2_jax.train.phase import phase, recipe


def get_config() -> ConfigDict:
    return recipe(
        detail=phase(
            "vae",
            seed=2,
            begin={"vae": "toybox/vae"},
            max_minutes=18.0,
            train=("decoder",),
            decoder_channels=(64, 64, 64),
            **SHARED,
        )
    )
