"""The rehearsal of a full-size cascade, on one that is tiny."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax import cli
from mv2_jax.config import (
    ControlNetConfig,
    ImageProjectionConfig,
    MotionConfig,
    RIFEConfig,
    StageConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
    VisionConfig,
)
from mv2_jax.configs import paper, presets, sd15
from mv2_jax.infer import rehearse

SPATIAL = UNetConfig(
    channels=(8,), layers_per_block=1, transformers=(1,), heads=(2,), context_width=8, norm_groups=4
)
UNET = dataclasses.replace(
    SPATIAL, motion=MotionConfig(max_frames=2, heads=2, norm_groups=4), image_tokens=True
)
TINY = SimpleNamespace(
    TEXT=TextConfig(vocab_size=49408, width=8, layers=1, heads=2, mlp_width=8),
    TEXT_2=None,
    VAE=VAEConfig(channels=(4, 4, 4, 4), layers_per_block=1, norm_groups=2, mid_attention=False),
    VISION=VisionConfig(16, 8, 8, 2, 2, 16, projection=None),
    PROJECTION=ImageProjectionConfig("resampler", 8, 8, 8, 2, 1, 2, 4),
    CONTROL=ControlNetConfig(SPATIAL, (4, 4), 4),
    RIFE=RIFEConfig(widths=(4, 4), scales=(2, 1), pad_to=32),
    T2I=StageConfig(SPATIAL, sd15.STILL, (64, 64)),
    I2V=StageConfig(UNET, sd15.MOVING, (120, 120), frames=3),
    V2V=StageConfig(UNET, sd15.MOVING, (128, 152), frames=3),
    DEFAULTS={"vfi": {"between": 1}},
)
TINY.PICTURE_VAE = TINY.VAE


def test_reduced_planes_keep_their_oddness():
    small = rehearse.reduced(paper, 8)
    assert [s.size for s in (small.T2I, small.I2V, small.V2V)] == [(128, 128), (72, 72), (136, 136)]
    assert rehearse.reduced(paper, 1).V2V == paper.V2V
    assert rehearse.reduced(paper, 8, frames=4).I2V.frames == 4
    assert small.V2V.unet == paper.V2V.unet and small.T2I.frames == 1


def test_random_parameters_keep_a_signals_scale():
    shapes = {
        "a": {"kernel": jnp.zeros((3, 3, 32, 64)), "bias": jnp.zeros(64)},
        "scale": jnp.zeros(4),
    }
    made = rehearse.random_params(shapes, "float32")
    assert abs(float(made["a"]["kernel"].std()) * (3 * 3 * 32) ** 0.5 - 1) < 0.05
    assert (made["a"]["bias"] == 0).all() and (made["scale"] == 1).all()


@pytest.mark.slow
def test_every_stage_is_run_and_reported(monkeypatch, capsys):
    monkeypatch.setitem(presets.PRESETS, "sd15", TINY)
    arguments = ["sd15", "--shrink", "3", "--steps", "1", "--dtype", "float32"]
    assert cli.main(["rehearse", *arguments]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["t2i", "i2v", "v2v", "vfi"]
    made = [row[-1] for row in rows]
    assert made == ["1x16x16x3", "1x3x40x40x3", "1x3x40x56x3", "1x5x40x56x3"]
    assert all(np.asarray(row[1:5], float).min() >= 0 and float(row[4]) > 0.1 for row in rows)


def test_wrong_arguments_get_one_line(capsys):
    for arguments, message in (
        (["papr"], "invalid choice: 'papr'"),
        (["paper", "--steps", "0"], "takes a whole number from 1 to 1024"),
    ):
        assert cli.main(["rehearse", *arguments]) == 2
        assert message in capsys.readouterr().err
