"""The toybox autoencoder: 256 x 256 pixels to a plane of 16 x 16 latents of 16 channels."""

from ml_collections import ConfigDict

from mv2_jax.config import VAEConfig, to_dict
from mv2_jax.train.phase import phase, recipe

VAE = VAEConfig(
    latent_channels=16,
    channels=(64, 64),
    layers_per_block=1,
    norm_groups=16,
    mid_attention=False,
    patch_size=8,
    latent_patch=1,
    shortcuts=True,
)

SHARED = {
    "steps": 40_000,
    "batch": 4,
    "model": {"vae": to_dict(VAE)},
    "data": {"views": ("256/128", "192", "256/128", "256")},
    "loss": {"l1": 1.0, "l2": 1.0, "edge": 1.0, "edge_scales": 2, "kl": 2e-4},
    "optim": {"lr": 1e-3, "warmup": 100, "schedule": "cosine", "clock": "time"},
    "ema": {"decay": 0.999},
}


def get_config() -> ConfigDict:
    return recipe(
        vae=phase("vae", max_minutes=20.0, **SHARED),
        # Sharper pictures of the same latents, whatever has been trained over them since.
        decoder=phase("vae", seed=1, max_minutes=12.0, train=("decoder",), **SHARED),
        # A larger one, with planes of up to a quarter of the frame: the small one, which is trained
        # with the encoder, draws 8 x 8 pixels at a time from 64 numbers.
        detail=phase(
            "vae",
            seed=2,
            max_minutes=18.0,
            train=("decoder",),
            decoder_channels=(64, 64, 64),
            **SHARED,
        ),
    )
