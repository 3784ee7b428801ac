"""ControlNet's residuals, and the UNet that takes them, compute what diffusers' pair does."""

import jax
import numpy as np
import pytest

from mv2_jax.config import ControlNetConfig, UNetConfig
from mv2_jax.convert.engine import export
from mv2_jax.convert.tables import controlnet as table
from mv2_jax.convert.tables import unet as unet_table
from mv2_jax.models.controlnet import ControlNet
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context
from mv2_jax.params import flatten

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
)
CFG = ControlNetConfig(UNET, condition_channels=(8, 12, 16, 16))
POOLED = ControlNetConfig(UNET, condition_channels=(8, 12, 16, 16), global_pool=True)
PLANE = (9, 7)


@pytest.fixture(scope="module", params=[CFG, POOLED], ids=["plain", "pooled"])
def pair(parity, request):
    """Both torch modules, and a compiled function of both of ours with its parameters."""
    cfg = request.param
    shape = dict(
        block_out_channels=UNET.channels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        layers_per_block=UNET.layers_per_block,
        attention_head_dim=UNET.heads,
        cross_attention_dim=UNET.context_width,
        norm_num_groups=UNET.norm_groups,
    )
    unet = diffusers.UNet2DConditionModel(
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **shape
    )
    control = diffusers.ControlNetModel(
        conditioning_embedding_out_channels=cfg.condition_channels,
        global_pool_conditions=cfg.global_pool,
        **shape,
    )
    parity.randomise(unet, 0), parity.randomise(control, 1)
    ours, ours_unet = ControlNet(cfg), UNet(UNET)
    x, t, context = *arrays(parity, 1, 1)[:2], Context(arrays(parity, 1, 1)[2])
    condition = np.zeros((1, 8 * PLANE[0], 8 * PLANE[1], 3), np.float32)
    params = {
        "control": parity.convert(
            control.state_dict(), table.rules(CFG), parity.shapes(ours, x, t, context, condition)
        ),
        "unet": parity.convert(
            unet.state_dict(), unet_table.rules(UNET), parity.shapes(ours_unet, x, t, context)
        ),
    }

    def apply(params, x, t, text, condition, scale):
        context = Context(text)
        residuals = ours.apply({"params": params["control"]}, x, t, context, condition, scale)
        context = context.replace(residuals=residuals)
        return residuals, ours_unet.apply({"params": params["unet"]}, x, t, context)

    return control, unet, parity.jit(apply), params


def arrays(parity, batch, frames):
    x = parity.noise(batch, frames, *PLANE, 4)
    t = np.array([999, 7, 500], np.int32)[:batch]
    return x, t, parity.noise(batch, 7, UNET.context_width, seed=2)


def picture(*leading):
    shape = (*leading, 8 * PLANE[0], 8 * PLANE[1], 3)
    return np.random.default_rng(3).uniform(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "batch, frames, per_frame, scale",
    [(1, 1, False, 1.0), (3, 2, False, 0.7), (3, 2, True, 1.0)],
    ids=["image", "one-reference", "image-per-frame"],
)
def test_controlnet_and_unet(pair, parity, batch, frames, per_frame, scale):
    control, unet, apply, params = pair
    x, t, text = arrays(parity, batch, frames)
    condition = picture(batch, frames) if per_frame else picture(batch)
    # torch sees frames as batch: times and text repeat, and so does a shared reference.
    repeat = lambda a: torch.from_numpy(a).repeat_interleave(frames, 0)  # noqa: E731
    images = torch.from_numpy(condition).flatten(0, 1) if per_frame else repeat(condition)
    flat = torch.from_numpy(x).flatten(0, 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        down, mid = control(
            flat,
            repeat(t),
            repeat(text),
            controlnet_cond=images.permute(0, 3, 1, 2),
            conditioning_scale=scale,
            return_dict=False,
        )
        expected = unet(
            flat,
            repeat(t),
            repeat(text),
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
    (ours_down, ours_mid), got = apply(params, x, t, text, condition, np.float32(scale))
    for ours, theirs in zip((*ours_down, ours_mid), (*down, mid), strict=True):
        assert parity.error(ours, parity.channels_last(theirs)) < TOLERANCE
    got = got.reshape(batch * frames, *got.shape[2:])
    assert parity.error(got, parity.channels_last(expected)) < TOLERANCE


def test_export_is_the_state_dict(pair, parity):
    control, *_, params = pair
    parity.same_state(export(params["control"], table.rules(CFG)), control.state_dict())


def test_a_fresh_controlnet_adds_nothing(parity):
    """What makes the residuals starts at zero; what lets the picture in need not."""
    x, t, text = arrays(parity, 1, 1)

    def outlets(key):
        params = flatten(ControlNet(CFG).init(key, x, t, Context(text), picture(1))["params"])
        last = ("controlnet_down_blocks", "controlnet_mid")
        return {name: leaf for name, leaf in params.items() if name.startswith(last)}

    found = parity.jit(outlets)(jax.random.key(0))
    assert len(found) == 2 * (4 + 1)
    for name, leaf in found.items():
        assert not leaf.any(), name


def test_a_condition_of_the_wrong_size_says_the_right_one(parity):
    x, t, text = arrays(parity, 1, 1)
    with pytest.raises(ValueError, match="must be 72x56"):
        ControlNet(CFG).init(jax.random.key(0), x, t, Context(text), picture(1)[:, :-1])
