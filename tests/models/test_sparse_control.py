"""SparseCtrl's RGB encoder computes what diffusers' SparseControlNetModel does."""

import dataclasses

import jax
import numpy as np
import pytest

from mv2_jax.config import MotionConfig, SparseControlConfig, UNetConfig
from mv2_jax.convert.engine import export
from mv2_jax.convert.tables import sparse_control as table
from mv2_jax.models.sparse_control import SparseControlNet, given_frames
from mv2_jax.nn.transformer import Context
from mv2_jax.params import flatten

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 5e-6  # measured: up to 1e-6
# Several channels a norm group: a frame that is not given begins as a constant in each channel,
# and alone in its group that is normalised to rounding error over epsilon.
MOTION = MotionConfig(heads=2, attentions=1, norm_groups=8, norm_scope="clip")
UNET = UNetConfig(
    channels=(16, 32),
    layers_per_block=1,
    transformers=(1, 0),
    heads=(2, 2),
    context_width=20,
    norm_groups=8,
    motion=MOTION,
)
CFG = SparseControlConfig(UNET)
PLANE = (9, 7)


def arrays(parity, batch, frames):
    x = parity.noise(batch, frames, *PLANE, 4)
    t = np.array([999, 7, 500], np.int32)[:batch]
    return x, t, parity.noise(batch, 7, UNET.context_width, seed=2)


@pytest.fixture(scope="module")
def pair(parity):
    """diffusers' module, and our compiled function with its parameters."""
    theirs = diffusers.SparseControlNetModel(
        block_out_channels=UNET.channels,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        layers_per_block=UNET.layers_per_block,
        attention_head_dim=UNET.heads,
        cross_attention_dim=UNET.context_width,
        norm_num_groups=UNET.norm_groups,
        motion_num_attention_heads=MOTION.heads,
    )
    parity.randomise(theirs)
    ours = SparseControlNet(CFG)
    condition, t, text = arrays(parity, 1, 2)
    target = parity.shapes(ours, condition, np.ones((1, 2), np.float32), t, Context(text))
    state = theirs.state_dict()
    params = parity.convert(state, table.find(state, CFG), target)

    def apply(params, condition, mask, t, text, scale):
        return ours.apply({"params": params}, condition, mask, t, Context(text), scale)

    return theirs, parity.jit(apply), params


@pytest.mark.parametrize(
    "batch, frames, given, scale",
    [(1, 3, (0,), 1.0), (3, 4, (3, 0), 0.7)],
    ids=["first-frame", "first-and-last"],
)
def test_residuals(pair, parity, batch, frames, given, scale):
    theirs, apply, params = pair
    latents, t, text = arrays(parity, batch, len(given))
    condition, mask = given_frames(latents, given, frames)
    theirs_mask = torch.from_numpy(np.array(mask))[:, None, :, None, None]
    with torch.no_grad():
        down, mid = theirs(
            # The noisy sample, which the encoder must not see.
            torch.full((batch, 4, frames, *PLANE), 1e3),
            torch.from_numpy(t),
            torch.from_numpy(text).repeat_interleave(frames, 0),
            controlnet_cond=torch.from_numpy(np.array(condition)).permute(0, 4, 1, 2, 3),
            conditioning_mask=theirs_mask.expand(batch, 1, frames, *PLANE),
            conditioning_scale=scale,
            return_dict=False,
        )
    ours_down, ours_mid = apply(params, condition, mask, t, text, np.float32(scale))
    for ours, expected in zip((*ours_down, ours_mid), (*down, mid), strict=True):
        assert parity.error(ours, parity.channels_last(expected)) < TOLERANCE


def test_export_and_the_original_layout(pair, parity):
    theirs, _, params = pair
    state = theirs.state_dict()
    parity.same_state(export(params, table.find(state, CFG)), state)
    original = {as_original(name): tensor for name, tensor in state.items()}
    got = parity.convert(original, table.find(original, CFG), params)
    jax.tree.map(np.testing.assert_array_equal, got, params)
    scribble = {name.replace("embedding.", "embedding.conv_in."): x for name, x in state.items()}
    with pytest.raises(ValueError, match="not SparseCtrl's RGB encoder"):
        table.find(scribble, CFG)


def as_original(key):
    """The AnimateDiff repository's name of diffusers'."""
    place, split, rest = key.partition(".motion_modules.")
    if not split:
        return key
    number, _, rest = rest.partition(".")
    for ours, theirs in {
        "norm1": "norms.0",
        "norm3": "ff_norm",
        "attn1": "attention_blocks.0",
        "pos_embed": "attention_blocks.0.pos_encoder",
    }.items():
        rest = rest.replace(f"{ours}.", f"{theirs}.")
    return f"{place}{split}{number}.temporal_transformer.{rest}"


def test_given_frames_lie_where_they_are_said_to():
    latents = np.random.default_rng(0).normal(size=(2, 2, 3, 3, 4)).astype(np.float32)
    condition, mask = given_frames(latents, (4, 1), 6)
    np.testing.assert_array_equal(mask, np.tile([0, 1, 0, 0, 1, 0], (2, 1)))
    np.testing.assert_array_equal(condition[:, [4, 1]], latents)
    assert not condition[:, [0, 2, 3, 5]].any()
    for wrong in ((0,), (0, 0), (0, 6), (-1, 2)):
        with pytest.raises(ValueError, match="2 given frames need as many different"):
            given_frames(latents, wrong, 6)


def test_a_fresh_encoder_adds_nothing(parity):
    """What makes the residuals starts at zero, and so does what lets the frames in."""
    condition, t, text = arrays(parity, 1, 2)

    def outlets(key):
        mask = np.ones((1, 2), np.float32)
        params = SparseControlNet(CFG).init(key, condition, mask, t, Context(text))["params"]
        last = ("controlnet_down_blocks", "controlnet_mid", "controlnet_cond_embedding")
        return {name: leaf for name, leaf in flatten(params).items() if name.startswith(last)}

    found = parity.jit(outlets)(jax.random.key(0))
    assert len(found) == 2 * (4 + 1 + 1)
    for name, leaf in found.items():
        assert not leaf.any(), name


@pytest.mark.parametrize(
    "cfg, mask, text",
    [
        (CFG, (1, 3), r"mask is \[1, 3\]; for 1 clips of 2 frames it must be \[1, 2\]"),
        (SparseControlConfig(dataclasses.replace(UNET, motion=None)), (1, 2), "motion modules"),
    ],
)
def test_what_does_not_fit_is_refused(parity, cfg, mask, text):
    condition, t, states = arrays(parity, 1, 2)
    with pytest.raises(ValueError, match=text):
        parity.shapes(
            SparseControlNet(cfg), condition, np.ones(mask, np.float32), t, Context(states)
        )
