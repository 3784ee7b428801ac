"""Checks signatures with shapes, as jaxtyping's import hook asks for: see conftest."""

import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, beartype

# Import it before the modules that it is for: tests hand NumPy's arrays to all that takes JAX's.
jaxtyping.Array = jax.Array | np.ndarray
# A whole number is a float, as type checkers have it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))

# Modules whose signatures say shapes, which are checked at every call.
SHAPED = [
    "mv2_jax.diffusion.free_init", "mv2_jax.diffusion.guidance", "mv2_jax.diffusion.noise_prior",
    "mv2_jax.models.image_projection", "mv2_jax.models.vae", "mv2_jax.models.vq",
    "mv2_jax.stages.gaps", "mv2_jax.stages.latents", "mv2_jax.stages.tiles",
]  # fmt: skip
