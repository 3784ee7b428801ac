"""Tiles of a VAE, beside diffusers' tiled encoder and decoder."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from torch_weights import randomise

from mv2_jax.stages import latents, tiles


def test_what_fits_into_a_tile_is_left_alone():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 8, 5, 2)))
    assert (tiles.tiled(lambda x: 2 * x, x, 8, 8) == 2 * x).all()


@pytest.mark.parametrize("plane", [(9, 8), (20, 33), (16, 16), (14, 13)])
def test_of_a_function_of_cells_nothing_is_seen(plane):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *plane, 3)))
    found = tiles.tiled(lambda x: jnp.repeat(jnp.repeat(jnp.sin(x), 2, 1), 2, 2), x, 8, 16)
    expected = np.repeat(np.repeat(np.sin(x), 2, 1), 2, 2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_chain_decodes_in_tiles():
    four = tiny.make()
    z = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 6, 5, 4)), jnp.float32)
    whole = latents.decode(four.params["vae"], tiny.VAE, z)
    cut = latents.decode(four.params["vae"], tiny.VAE, z, tile=4 * tiny.VAE.factor)
    assert whole.shape == cut.shape == (1, 3, 48, 40, 3)
    assert 1e-4 < np.abs(whole - cut).max() and np.abs(whole - cut).mean() < 0.2
    stage = dataclasses.replace(tiny.KEYFRAMES, tile=32)
    assert stage.tile == 32


@pytest.mark.slow
@pytest.mark.parametrize("size", [(40, 88), (64, 56)])
def test_tiles_are_diffusers(size, tmp_path):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    from mv2_jax.convert.checkpoint import open_checkpoint
    from mv2_jax.convert.pending import plain
    from mv2_jax.params import unflatten

    module = randomise(
        diffusers.AutoencoderKL(
            block_out_channels=(64, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            sample_size=32,
        ),
        2,
    )
    module.enable_tiling()
    module.save_pretrained(tmp_path / "vae")
    network = plain(open_checkpoint(str(tmp_path / "vae")).one("vae"))
    params, cfg = unflatten(dict(network.pending().make())), network.config
    rng = np.random.default_rng(1)
    pixels = rng.uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = module.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2)).latent_dist.mode()
        back = module.decode(theirs).sample.permute(0, 2, 3, 1).clip(-1, 1).numpy()
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    z = np.asarray(latents.encode(params, cfg, jnp.asarray(pixels), tile=32))
    np.testing.assert_allclose(z / cfg.scaling_factor, theirs, atol=1e-4 * np.abs(theirs).max())
    found = latents.decode(params, cfg, jnp.asarray(theirs * cfg.scaling_factor), tile=32)
    np.testing.assert_allclose(found, back, atol=1e-4)
    whole = latents.encode(params, cfg, jnp.asarray(pixels))
    assert np.abs(whole - z).max() > 1e-2 * np.abs(z).max()
