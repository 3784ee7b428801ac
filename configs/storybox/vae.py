"""The storybox autoencoder: 256 x 256 pixels to a plane of 16 x 16 latents of 32 channels."""

from ml_collections import ConfigDict

from mv2_jax.config import to_dict
from mv2_jax.configs.storybox import sizes
from mv2_jax.configs.toybox import vae as toybox
from mv2_jax.train.phase import phase, recipe

SHARED = {
    **toybox.SHARED,
    "model": {"vae": to_dict(sizes.VAE)},
    "data": {**toybox.SHARED["data"], "source": "storybox"},
}


def get_config() -> ConfigDict:
    return recipe(
        vae=phase("vae", max_minutes=60.0, **SHARED),
        # Sharper pictures of the same latents, with planes of up to a quarter of the frame.
        detail=phase(
            "vae",
            seed=1,
            max_minutes=30.0,
            train=("decoder",),
            decoder_channels=(64, 64, 128),
            **SHARED,
        ),
    )
