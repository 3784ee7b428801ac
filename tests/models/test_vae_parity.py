"""AutoencoderKL computes what diffusers' does, at even and odd planes."""

import jax
import numpy as np
import pytest

from mv2_jax.config import VAEConfig
from mv2_jax.convert.engine import export
from mv2_jax.convert.tables import vae as table
from mv2_jax.models.vae import AutoencoderKL

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 5e-6
CFG = VAEConfig(channels=(16, 24, 32), layers_per_block=1, norm_groups=8)


@pytest.fixture(scope="module")
def pair(parity):
    """The torch module, ours and its converted parameters."""
    levels = len(CFG.channels)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=CFG.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=CFG.layers_per_block,
        norm_num_groups=CFG.norm_groups,
        latent_channels=CFG.latent_channels,
    )
    parity.randomise(theirs)
    ours = AutoencoderKL(CFG)
    target = parity.shapes(ours, np.zeros((1, 16, 16, 3), np.float32))
    return theirs, ours, parity.convert(theirs.state_dict(), table.rules(), target)


@pytest.mark.parametrize("batch, height, width", [(1, 16, 24), (3, 19, 13)])
def test_encoder(pair, parity, batch, height, width):
    theirs, ours, params = pair
    x = parity.noise(batch, height, width, 3)
    with torch.no_grad():
        moments = theirs.encode(torch.from_numpy(x).permute(0, 3, 1, 2)).latent_dist
    mean, logvar = parity.jit(lambda x: ours.apply({"params": params}, x, method="encode"))(x)
    assert parity.error(mean, parity.channels_last(moments.mean)) < TOLERANCE
    assert parity.error(logvar, parity.channels_last(moments.logvar)) < TOLERANCE


@pytest.mark.parametrize("batch, height, width", [(1, 4, 6), (3, 5, 3)])
def test_decoder(pair, parity, batch, height, width):
    theirs, ours, params = pair
    z = parity.noise(batch, height, width, CFG.latent_channels)
    with torch.no_grad():
        image = theirs.decode(torch.from_numpy(z).permute(0, 3, 1, 2)).sample
    got = parity.jit(lambda z: ours.apply({"params": params}, z, method="decode"))(z)
    assert parity.error(got, parity.channels_last(image)) < TOLERANCE


def test_older_names_of_the_attention_convert_to_the_same(pair, parity):
    theirs, _, params = pair
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = theirs.state_dict()
    for new, name in old.items():
        state = {
            k.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): v for k, v in state.items()
        }
    again = parity.convert(state, table.rules(), params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_export_is_the_state_dict(pair, parity):
    theirs, _, params = pair
    parity.same_state(export(params, table.rules()), theirs.state_dict())
