"""Decoupled image cross-attention computes what diffusers' IP-Adapter processors do."""

import jax
import numpy as np
import pytest

from mv2_jax.config import UNetConfig
from mv2_jax.convert.engine import export
from mv2_jax.convert.tables import ip_attention as table
from mv2_jax.convert.tables import unet as unet_table
from mv2_jax.models.unet import UNet
from mv2_jax.nn.attention import Attention
from mv2_jax.nn.transformer import Context
from mv2_jax.params import merge, split

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 5e-6
TOKENS = 4
CFG = UNetConfig(
    channels=(16, 32),
    layers_per_block=1,
    transformers=(1, 2),
    mid_transformers=2,
    heads=(2, 4),
    context_width=20,
    norm_groups=8,
    image_tokens=True,
)


class Pass(torch.nn.Module):
    """Stands where diffusers projects image embeddings; the tokens here are projected already."""

    def forward(self, image_embeds):
        return image_embeds


def build(parity):
    """diffusers' UNet with IP-Adapter processors, and the original file's state dict of these."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    unet = diffusers.UNet2DConditionModel(
        block_out_channels=CFG.channels,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=CFG.layers_per_block,
        transformer_layers_per_block=CFG.transformers,
        attention_head_dim=CFG.heads,
        cross_attention_dim=CFG.context_width,
        norm_num_groups=CFG.norm_groups,
    )
    spatial = dict(parity.randomise(unet).state_dict())
    processors, original = {}, {}
    # diffusers numbers a file's entries by the order of this dict, so the order is its word.
    for number, (name, processor) in enumerate(unet.attn_processors.items()):
        if "attn2" in name:
            width = unet.get_submodule(name.removesuffix(".processor")).to_q.weight.shape[0]
            processor = IPAdapterAttnProcessor2_0(width, CFG.context_width, (TOKENS,))
            parity.randomise(processor, number)
            for x in "kv":
                weight = getattr(processor, f"to_{x}_ip")[0].weight
                original[f"ip_adapter.{number}.to_{x}_ip.weight"] = weight
        processors[name] = processor
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = Pass()
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    return unet.eval(), spatial, original


@pytest.fixture(scope="module")
def pair(parity):
    theirs, spatial, original = build(parity)
    ours = UNet(CFG)
    target = parity.shapes(
        ours,
        np.zeros((1, 1, 8, 8, 4), np.float32),
        np.zeros(1, np.int32),
        Context(*np.zeros((2, 1, 7, CFG.context_width), np.float32)),
    )
    image_attn, rest = split(target, lambda name: "_ip/" in name)
    image_attn = parity.convert(original, table.rules(CFG), image_attn)
    parity.same_state(export(image_attn, table.rules(CFG)), original)
    rest = parity.convert(spatial, unet_table.rules(CFG), rest)
    apply = parity.jit(
        lambda p, x, t, text, image, scale: ours.apply(
            {"params": p}, x, t, Context(text, image, scale)
        )
    )
    return theirs, apply, merge(image_attn, rest)


def run(pair, parity, batch, scale, ours_scale=None):
    theirs, apply, params = pair
    x = parity.noise(batch, 1, 9, 7, 4)
    t = np.array([999, 7, 500], np.int32)[:batch]
    text = parity.noise(batch, 7, CFG.context_width, seed=2)
    image = parity.noise(batch, TOKENS, CFG.context_width, seed=3)
    for processor in theirs.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [scale]
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(x[:, 0]).permute(0, 3, 1, 2),
            torch.from_numpy(t),
            torch.from_numpy(text),
            added_cond_kwargs={"image_embeds": [torch.from_numpy(image)]},
        ).sample
    scale = np.float32(scale) if ours_scale is None else ours_scale
    got = apply(params, x, t, text, image, scale)
    return got[:, 0], parity.channels_last(expected)


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_image_attention(pair, parity, scale):
    got, expected = run(pair, parity, 3, scale)
    assert parity.error(got, expected) < TOLERANCE


def test_the_image_matters_and_its_scale_can_differ_by_sample(pair, parity):
    """Each sample's own scale gives what that scale gives for all; and 0 differs from 1."""
    off, _ = run(pair, parity, 3, 0.0)
    full, _ = run(pair, parity, 3, 1.0)
    mixed, _ = run(pair, parity, 3, 1.0, np.array([0.0, 1.0, 0.0], np.float32))
    assert parity.error(off, full) > 0.01
    assert parity.error(mixed, np.stack([off[0], full[1], off[2]])) < TOLERANCE


def test_a_forgotten_image_is_an_error():
    attention = Attention(heads=2, image_tokens=True)
    x, text = np.zeros((1, 5, 8), np.float32), np.zeros((1, 7, 20), np.float32)
    with pytest.raises(ValueError, match="give image_context"):
        attention.init(jax.random.key(0), x, text)


def test_sd15_numbers_its_sixteen_attentions_1_to_31():
    names = [rule.pattern.split(".")[1] for rule in table.rules(UNetConfig(image_tokens=True))]
    assert [int(name) for name in names] == list(range(1, 32, 2))


def test_sdxl_numbers_its_seventy_attentions_1_to_139():
    cfg = UNetConfig(channels=(320, 640, 1280), transformers=(0, 2, 10), mid_transformers=10)
    names = [rule.pattern.split(".")[1] for rule in table.rules(cfg)]
    assert [int(name) for name in names] == list(range(1, 140, 2))
