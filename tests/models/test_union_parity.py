"""ControlNet Union computes what diffusers' does for each picture alone."""

import dataclasses

import jax
import numpy as np
import pytest

from mv2_jax.config import ControlNetConfig, UNetConfig
from mv2_jax.convert.engine import export
from mv2_jax.convert.tables import controlnet as table
from mv2_jax.models.controlnet import ControlNet
from mv2_jax.nn.transformer import Context

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 5e-6
UNET = UNetConfig(
    channels=(16, 32),
    layers_per_block=1,
    transformers=(1, 0),
    heads=(2, 2),
    context_width=20,
    norm_groups=8,
    size_ids_width=6,
)
CFG = ControlNetConfig(UNET, condition_channels=(8, 12), types=4, type_layers=2)
PLANE = (9, 7)


@pytest.fixture(scope="module")
def pair(parity):
    """diffusers' network, ours compiled, and its parameters."""
    theirs = diffusers.ControlNetUnionModel(
        block_out_channels=UNET.channels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        layers_per_block=UNET.layers_per_block,
        attention_head_dim=UNET.heads,
        cross_attention_dim=UNET.context_width,
        norm_num_groups=UNET.norm_groups,
        addition_time_embed_dim=UNET.size_ids_width,
        conditioning_embedding_out_channels=CFG.condition_channels,
        num_control_type=CFG.types,
        num_trans_channel=UNET.channels[0],
        num_proj_channel=UNET.channels[0],
        num_trans_layer=CFG.type_layers,
        num_trans_head=4,
    )
    parity.randomise(theirs, 0)
    ours = ControlNet(CFG)
    x, t, text, pixels = arrays(parity, 1, 1)
    shapes = parity.shapes(ours, x, t, Context(text), pixels, 1.0, np.zeros(1, np.int32))
    params = parity.convert(theirs.state_dict(), table.rules(CFG), shapes)

    def apply(params, x, t, text, pixels, scale, kind):
        return ours.apply({"params": params}, x, t, Context(text), pixels, scale, kind)

    return theirs, parity.jit(apply), params


def arrays(parity, batch, frames):
    x = parity.noise(batch, frames, *PLANE, 4)
    t = np.array([999, 7, 500], np.int32)[:batch]
    pixels = np.random.default_rng(3).uniform(size=(batch, 2 * PLANE[0], 2 * PLANE[1], 3))
    text = parity.noise(batch, 7, UNET.context_width, seed=2)
    return x, t, text, pixels.astype(np.float32)


def diffused(net, x, t, text, pixels, kind, scale=1.0):
    """diffusers' residuals of samples [N, ...], which share a kind."""
    channels_first = lambda a: torch.from_numpy(a).permute(0, 3, 1, 2)  # noqa: E731
    with torch.no_grad():
        down, mid = net(
            channels_first(x),
            torch.from_numpy(t),
            torch.from_numpy(text),
            controlnet_cond=[channels_first(pixels)],
            control_type=torch.eye(CFG.types)[kind].repeat(len(x), 1),
            control_type_idx=[kind],
            conditioning_scale=scale,
            return_dict=False,
        )
    return (*down, mid)


def test_each_frame_is_diffusers_alone(pair, parity, batch=3, frames=2, scale=0.7):
    theirs, apply, params = pair
    x, t, text, pixels = arrays(parity, batch, frames)
    kinds = np.int32([3, 0, 2])[:batch]
    down, mid = apply(params, x, t, text, pixels, np.float32(scale), kinds)
    for i in range(batch):
        for j in range(frames):
            row = slice(i, i + 1)
            alone = diffused(theirs, x[row, j], t[row], text[row], pixels[row], kinds[i], scale)
            for ours, other in zip((*down, mid), alone, strict=True):
                frame = np.asarray(ours)[i * frames + j]
                assert parity.error(frame[None], parity.channels_last(other)) < TOLERANCE


def test_why_alone(pair, parity):
    """In diffusers a sample's answer hangs on its neighbours, unless they show the same picture and
    latents, as the two rows of guidance do: so one picture's video is what it would be there."""
    theirs = pair[0]
    x, t, text, pixels = arrays(parity, 2, 1)
    alone = diffused(theirs, x[:1, 0], t[:1], text[:1], pixels[:1], 1)
    beside = diffused(theirs, x[:, 0], t, text, pixels, 1)
    twice = [np.repeat(each[:1], 2, axis=0) for each in (x[:, 0], t)]
    guided = diffused(theirs, *twice, text, np.repeat(pixels[:1], 2, axis=0), 1)
    assert (beside[0][0] - alone[0][0]).abs().max() > 1e-3
    assert (guided[0][0] - alone[0][0]).abs().max() < 1e-5


def test_export_is_the_state_dict(pair, parity):
    theirs, _, params = pair
    parity.same_state(export(params, table.rules(CFG)), theirs.state_dict())


def test_it_wants_to_be_told(parity):
    x, t, text, pixels = arrays(parity, 1, 1)
    with pytest.raises(ValueError, match="kind of its pictures"):
        ControlNet(CFG).init(jax.random.key(0), x, t, Context(text), pixels)
    plain = dataclasses.replace(CFG, types=0)
    assert "task_embedding" not in parity.shapes(ControlNet(plain), x, t, Context(text), pixels)
