"""The spatial UNet computes what diffusers' UNet2DConditionModel does, odd planes included."""

import numpy as np
import pytest

from mv2_jax.config import UNetConfig
from mv2_jax.convert.engine import export
from mv2_jax.convert.tables import unet as table
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 5e-6
# SD1.5's kinds of levels, the last without attention.
SMALL = UNetConfig(
    channels=(16, 24, 32),
    layers_per_block=1,
    transformers=(1, 1, 0),
    heads=(2, 2, 4),
    context_width=20,
    norm_groups=8,
)
# SD1.5 itself but for its widths: four levels of two units.
SD15 = UNetConfig(channels=(16, 24, 32, 32), heads=(2, 2, 4, 4), context_width=20, norm_groups=8)
# SDXL in small: no attention on top, deeper transformers below, linear projections, pooled text.
SDXL = UNetConfig(
    channels=(16, 32, 32),
    layers_per_block=1,
    transformers=(0, 1, 2),
    mid_transformers=2,
    heads=(2, 2, 4),
    context_width=20,
    norm_groups=8,
    linear_projection=True,
    pooled_width=12,
    size_ids_width=8,
)


def build(cfg):
    """diffusers' UNet of the same shape."""
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in cfg.transformers]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    extra = {}
    if cfg.pooled_width is not None:
        extra = dict(
            addition_embed_type="text_time",
            addition_time_embed_dim=cfg.size_ids_width,
            projection_class_embeddings_input_dim=cfg.pooled_width + 6 * cfg.size_ids_width,
        )
    return diffusers.UNet2DConditionModel(
        block_out_channels=cfg.channels,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=cfg.layers_per_block,
        transformer_layers_per_block=[max(depth, 1) for depth in cfg.transformers],
        attention_head_dim=cfg.heads,  # diffusers' name for the number of heads
        cross_attention_dim=cfg.context_width,
        norm_num_groups=cfg.norm_groups,
        use_linear_projection=cfg.linear_projection,
        **extra,
    )


def inputs(parity, cfg, batch, height, width):
    x = parity.noise(batch, 1, height, width, cfg.in_channels)
    t = np.array([999, 7, 500], np.int32)[:batch]
    text = parity.noise(batch, 7, cfg.context_width, seed=2)
    return x, t, text


def convert(parity, cfg, theirs):
    ours = UNet(cfg)
    x, t, text = inputs(parity, cfg, 1, 8, 8)
    added = {}
    if cfg.pooled_width is not None:
        added = dict(pooled=np.zeros((1, cfg.pooled_width)), size_ids=np.zeros((1, 6)))
    target = parity.shapes(ours, x, t, Context(text, **added))
    return ours, parity.convert(theirs.state_dict(), table.rules(cfg), target)


def compare(parity, cfg, theirs, ours, params, batch, height, width):
    x, t, text = inputs(parity, cfg, batch, height, width)
    added, theirs_added = {}, {}
    if cfg.pooled_width is not None:
        pooled = parity.noise(batch, cfg.pooled_width, seed=3)
        sizes = np.tile(np.array([[1024, 768, 0, 16, 512, 640]], np.float32), (batch, 1))
        added = dict(pooled=pooled, size_ids=sizes)
        theirs_added = dict(text_embeds=torch.from_numpy(pooled), time_ids=torch.from_numpy(sizes))
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(x[:, 0]).permute(0, 3, 1, 2),
            torch.from_numpy(t),
            torch.from_numpy(text),
            added_cond_kwargs=theirs_added or None,
        ).sample
    apply = parity.jit(
        lambda p, x, t, text: ours.apply({"params": p}, x, t, Context(text, **added))
    )
    got = apply(params, x, t, text)
    assert parity.error(got[:, 0], parity.channels_last(expected)) < TOLERANCE


@pytest.fixture(scope="module")
def small(parity):
    theirs = parity.randomise(build(SMALL))
    return theirs, *convert(parity, SMALL, theirs)


@pytest.mark.parametrize("batch, height, width", [(1, 16, 24), (3, 19, 13)])
def test_small(small, parity, batch, height, width):
    compare(parity, SMALL, *small, batch, height, width)


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [SD15, SDXL], ids=["sd15", "sdxl"])
def test_public_shapes_and_their_export(parity, cfg):
    theirs = parity.randomise(build(cfg))
    ours, params = convert(parity, cfg, theirs)
    compare(parity, cfg, theirs, ours, params, 2, 19, 13)
    parity.same_state(export(params, table.rules(cfg)), theirs.state_dict())
