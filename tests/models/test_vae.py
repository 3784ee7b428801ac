"""What the toybox adds to the public autoencoder: packed latents and shortcuts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.config import VAEConfig
from mv2_jax.models.vae import AutoencoderKL, refold, scale_latents, unscale_latents

PLAIN = VAEConfig(
    latent_channels=3, channels=(8, 16), layers_per_block=1, norm_groups=4, patch_size=2
)
PACKED = dataclasses.replace(PLAIN, latent_patch=2)


def test_packed_latents_are_the_plain_ones_folded():
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 24, 40, 3)), jnp.float32)
    plain, packed = AutoencoderKL(PLAIN), AutoencoderKL(PACKED)
    params = jax.jit(plain.init)(jax.random.key(0), x)
    z = plain.apply(params, x, method="encode")[0]
    q = packed.apply(params, x, method="encode")[0]
    assert PACKED.factor == 2 * PLAIN.factor == 8
    assert q.shape == (2, 3, 5, PACKED.plane_channels) == (2, 3, 5, 12)
    np.testing.assert_array_equal(q[1, 2, 3, :3], z[1, 4, 6])
    np.testing.assert_array_equal(q[1, 2, 3, 9:], z[1, 5, 7])
    decoded = [m.apply(params, v, method="decode") for m, v in ((plain, z), (packed, q))]
    np.testing.assert_array_equal(*decoded)


def test_refolding_up_undoes_refolding_down_where_no_channel_is_averaged():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 4, 6, 3)), jnp.float32)
    down = refold(x, "down", 12)
    assert down.shape == (1, 2, 3, 12)
    np.testing.assert_array_equal(refold(down, "up", 3), x)
    # Fewer channels hold means of channels at one place, never of different places.
    flat = refold(jnp.broadcast_to(x[..., :1], (1, 4, 6, 4)), "down", 4)
    np.testing.assert_allclose(flat[0, 0, 0], x[0, :2, :2, 0].ravel(), rtol=1e-6)
    with pytest.raises(ValueError, match="cannot average 12 channels to 5"):
        refold(x, "down", 5)


def test_scaling_is_undone():
    cfg = dataclasses.replace(PLAIN, scaling_factor=0.4, shift_factor=-0.3)
    z = jnp.asarray([0.5, -2.0])
    np.testing.assert_allclose(scale_latents(z, cfg), [0.32, -0.68], rtol=1e-6)
    np.testing.assert_allclose(unscale_latents(scale_latents(z, cfg), cfg), z, rtol=1e-6)
