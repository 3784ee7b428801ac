"""Single-file names mean what diffusers' own converters say they mean."""

import numpy as np
import pytest

from mv2_jax.convert import diffusers_config, engine, ldm, pending
from mv2_jax.convert.checkpoint import SourceNetwork
from mv2_jax.convert.recognise import recognise
from mv2_jax.params import flatten

torch = pytest.importorskip("torch")
single = pytest.importorskip("diffusers.loaders.single_file_utils")


def tree(part):
    found = SourceNetwork("x", "x", None, part, {})
    network = pending.plain(found)
    return flatten(engine.convert(part.tensors, network.table, network.target))


def equal(first, second):
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def same_state(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name].reshape(value.shape), value), name


def test_unet(small):
    state = small.unet().state_dict()
    modules = ldm.unet_modules(2, 1)
    file = {f"model.diffusion_model.{k}": v for k, v in small.as_ldm(state, modules).items()}
    (plain,) = recognise(state, {"attention_head_dim": 8})
    settings = {"addition_embed_type": None, **diffusers_config.unet(plain.config)[1]}
    same_state(single.convert_ldm_unet_checkpoint(dict(file), settings), state)
    (part,) = recognise(file)
    assert (part.kind, part.layout) == ("unet", "a single file's (LDM)")
    assert part.config == plain.config
    equal(tree(part), tree(plain))


def test_controlnet(small):
    state = small.controlnet().state_dict()
    modules = ldm.unet_modules(2, 1)
    modules |= {f"zero_convs.{n}.0": f"controlnet_down_blocks.{n}" for n in range(4)}
    embedding = "controlnet_cond_embedding"
    hints = ("conv_in", "blocks.0", "blocks.1", "conv_out")
    modules |= {f"input_hint_block.{2 * n}": f"{embedding}.{h}" for n, h in enumerate(hints)}
    modules["middle_block_out.0"] = "controlnet_mid_block"
    file = {f"control_model.{k}": v for k, v in small.as_ldm(state, modules).items()}
    (plain,) = recognise(state, {"attention_head_dim": 8})
    (part,) = recognise(file)
    assert part.kind == "controlnet" and part.config == plain.config
    equal(tree(part), tree(plain))


def test_vae(small):
    state = small.vae().state_dict()
    file = {f"first_stage_model.{name}": value for name, value in small.as_ldm_vae(state).items()}
    (plain,) = recognise(state)
    theirs = single.convert_ldm_vae_checkpoint(dict(file), diffusers_config.vae(plain.config)[1])
    same_state(theirs, state)
    (part,) = recognise(file)
    assert part.kind == "vae" and part.config == plain.config
    assert part.config.scaling_factor == 0.18215
    equal(tree(part), tree(plain))


def test_sdxls_numbers():
    """Levels and resnets are counted from names; SDXL's label embedding has its place."""
    names = [f"input_blocks.{n}.0.x" for n in range(9)]
    names[3], names[6] = "input_blocks.3.0.op.weight", "input_blocks.6.0.op.weight"
    assert ldm.unet_counts(names) == (3, 2)
    modules = ldm.unet_modules(3, 2)
    assert ldm.renamed("label_emb.0.2.bias", modules) == "add_embedding.linear_2.bias"
    assert modules["input_blocks.4.1"] == "down_blocks.1.attentions.0"
    assert modules["output_blocks.5.2.conv"] == "up_blocks.1.upsamplers.0.conv"
    assert modules["output_blocks.8.0.in_layers.2"] == "up_blocks.2.resnets.2.conv1"
    assert ldm.renamed("mystery.weight", modules) == "mystery.weight"
