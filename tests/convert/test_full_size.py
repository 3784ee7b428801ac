"""The tables fit the public checkpoints' full sizes, name by name and shape by shape.

Everything is abstract: torch modules on the meta device, Flax trees by eval_shape.
"""

import functools

import jax
import numpy as np
import pytest

from mv2_jax import params
from mv2_jax.config import ControlNetConfig, MotionConfig, UNetConfig, VAEConfig
from mv2_jax.convert import engine
from mv2_jax.convert.tables import controlnet, motion, unet, vae
from mv2_jax.models.controlnet import ControlNet
from mv2_jax.models.unet import UNet
from mv2_jax.models.vae import AutoencoderKL
from mv2_jax.nn.transformer import Context

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SD15 = dict(cross_attention_dim=768, attention_head_dim=8)
X, T = np.zeros((1, 1, 8, 8, 4), np.float32), np.zeros(1, np.int32)
TEXT = Context(np.zeros((1, 7, 768), np.float32))


def state_shapes(cls, **config):
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in cls(**config).state_dict().items()}


def tree(module, *args):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *args))["params"]


@functools.cache
def video_tree(motion_config):
    """(motion, spatial) of the full-size video UNet."""
    whole = tree(UNet(UNetConfig(motion=motion_config)), X, T, TEXT)
    return params.split(whole, lambda name: "motion_modules_" in name)


def millions(tree):
    """Millions of trained numbers: diffusers does not count positional encodings."""
    _, trained = params.split(tree, lambda name: name.endswith("/pe"))
    return round(params.count(trained) / 1e6)


def test_sd15_unet_and_v3_motion():
    moving, spatial = video_tree(MotionConfig())
    shapes = state_shapes(diffusers.UNet2DConditionModel, **SD15)
    assert len(shapes) == 686 and millions(spatial) == 860
    engine.check(shapes, unet.rules(UNetConfig()), spatial)
    shapes = state_shapes(diffusers.MotionAdapter, use_motion_mid_block=False)
    assert millions(moving) == 417
    engine.check(shapes, motion.diffusers(), moving)


def test_v2_motion():
    moving, _ = video_tree(MotionConfig(mid_block=True))
    assert millions(moving) == 453
    engine.check(state_shapes(diffusers.MotionAdapter), motion.diffusers(), moving)


def test_a_v2_module_does_not_fit_v3():
    moving, _ = video_tree(MotionConfig())
    shapes = state_shapes(diffusers.MotionAdapter)
    with pytest.raises(engine.ConversionError, match=r"without a place.*\n  mid_block.motion_mod"):
        engine.check(shapes, motion.diffusers(), moving)


def test_controlnet():
    condition = np.zeros((1, 64, 64, 3), np.float32)
    target = tree(ControlNet(ControlNetConfig()), X, T, TEXT, condition)
    shapes = state_shapes(diffusers.ControlNetModel, **SD15)
    engine.check(shapes, controlnet.rules(ControlNetConfig()), target)


def test_vae():
    shapes = state_shapes(
        diffusers.AutoencoderKL,
        block_out_channels=VAEConfig().channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    target = tree(AutoencoderKL(VAEConfig()), np.zeros((1, 64, 64, 3), np.float32))
    engine.check(shapes, vae.rules(), target)
