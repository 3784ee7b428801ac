"""Files and settings that make no sense are refused in words, and nothing else is raised."""

import random

import numpy as np
import pytest

from mv2_jax.config import UNetConfig
from mv2_jax.convert import param_shapes, pending, schedules
from mv2_jax.convert.checkpoint import Checkpoint, SourceNetwork, open_checkpoint
from mv2_jax.convert.engine import exported
from mv2_jax.convert.recognise import recognise
from mv2_jax.convert.tables import unet
from mv2_jax.errors import InputError
from mv2_jax.params import flatten

CFG = UNetConfig(channels=(32, 64), layers_per_block=1, transformers=(1, 0), heads=(8, 8))


@pytest.mark.parametrize(
    "name",
    [
        "time_embedding.linear_1.weight",
        "input_blocks.0.0.weight",
        "encoder.conv_in.weight",
        "embeddings.token_embedding.weight",
        "token_embedding.weight",
        "embeddings.patch_embedding.weight",
        "visual.conv1.weight",
        "down_blocks.0.motion_modules.0.attn1.x",
        "down_blocks.0.motion_modules.0.temporal_transformer.x",
        "ip_adapter.1.to_k_ip.weight",
    ],
)
@pytest.mark.parametrize("shape", [(), (16,), (4, 0), (2, 2, 2, 2)], ids=str)
def test_a_name_alone_is_no_network(name, shape):
    beside = {"conv_in.weight": np.zeros(shape), "image_proj.proj.weight": np.zeros(shape)}
    for source in ({name: np.zeros(shape)}, {name: np.zeros(shape), **beside}):
        with pytest.raises(InputError):
            recognise(source)


@pytest.fixture(scope="module")
def hollow():
    """A whole UNet whose tensors hold nothing."""
    leaves = flatten(param_shapes.unet(CFG)["spatial"])
    source = {}
    for key, (rule, names) in exported(leaves, unet.rules(CFG)).items():
        source[key] = rule.operation.backward(
            np.broadcast_to(np.float32(0), leaves[names[0]].shape)
        )
    return source


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"attention_head_dim": 0}, "attention_head_dim=0, which is no number of anything"),
        ({"attention_head_dim": "8"}, "attention_head_dim='8'"),
        ({"attention_head_dim": [8]}, "names heads for 1 of 2 levels"),
        ({"attention_head_dim": 7}, "cannot be so: width 32 does not divide into 7 heads"),
        ({"norm_num_groups": True}, "norm_num_groups=True"),
        ({"norm_num_groups": 7}, "cannot be so: 32 channels do not divide into 7 norm groups"),
    ],
)
def test_settings_of_no_network(hollow, settings, text):
    with pytest.raises(InputError, match=text):
        (part,) = recognise(hollow, settings)
        pending.plain(SourceNetwork("x", "x", None, part, settings))


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"beta_start": "x"}, "beta_start is 'x'; it must be from 0.0 to 1.0"),
        ({"beta_end": float("nan")}, "beta_end is nan"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0; it must be from 1"),
        ({"steps_offset": 1000}, "steps_offset is 1000; it must be from 0 to 999"),
        ({"prediction_type": None}, r"unknown prediction_type None \(known: epsilon"),
        ({"timestep_spacing": []}, r"unknown timestep_spacing \[\] \(known: leading"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas .* is not supported"),
    ],
)
def test_schedules_of_no_scheduler(settings, text):
    with pytest.raises(InputError, match=text):
        schedules.still(Checkpoint("x", (), settings), UNetConfig(pooled_width=8))


def test_pickles_of_strange_tensors_and_broken_ones(tmp_path):
    torch = pytest.importorskip("torch")
    path, matrix = tmp_path / "x.ckpt", torch.ones(2, 2)
    for tensor, text in (
        (matrix.to_sparse(), "a is no plain tensor"),
        (matrix.to("meta"), "a is no plain tensor"),
        (matrix.to(torch.complex64), "a is of complex numbers"),
        (matrix.to(torch.float8_e4m3fn), "nothing known in it"),
    ):
        torch.save({"a": tensor}, path)
        with pytest.raises(InputError, match=text):
            open_checkpoint(str(path))
    rng = random.Random(0)
    for zipped in (True, False):
        torch.save({"a": matrix, "b": 3}, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for _ in range(60):
            broken = bytearray(whole[: rng.randrange(1, len(whole) + 1)])
            for _ in range(rng.choice([0, 1, 20])):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            path.write_bytes(broken)
            with pytest.raises(InputError):  # it is no network even where it can still be read
                open_checkpoint(str(path))
