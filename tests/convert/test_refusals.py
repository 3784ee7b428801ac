"""Files that are known and serve for nothing are refused by their own names."""

import numpy as np
import pytest
from converting import convert, refused
from safetensors.numpy import load_file, save_file

from mv2_jax.convert.recognise import recognise
from mv2_jax.errors import InputError

torch = pytest.importorskip("torch")
MODULES = "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"
SDXL = {"add_embedding.linear_1.weight": (8, 8), "down_blocks.0.resnets.0.conv1.weight": (8, 8)}
LAYER = "{}.attentions.{}.transformer_blocks.{}.norm1.weight"


@pytest.mark.parametrize(
    "shapes, text",
    [
        ({MODULES: (8,), "conv_in.weight": (8, 9, 3, 3)}, "this is PIA"),
        ({MODULES: (8,), "img_encoder.conv_in.weight": (8, 4, 3, 3)}, "this is AnimateLCM-I2V"),
        ({"image_proj.proj.0.weight": (8, 8), "ip_adapter.1.to_q_lora.down.weight": (8, 8)},
         "this is an IP-Adapter FaceID"),
        ({"image_proj.proj.0.weight": (8, 8), "image_proj.proj.2.weight": (8, 8),
          "image_proj.norm.weight": (8,), "ip_adapter.1.to_k_ip.weight": (8, 8)},
         "this is an IP-Adapter FaceID portrait"),
        ({"1.weight": (64, 4, 3, 3), "3.conv.0.weight": (64, 64, 3, 3)}, "this is TAESD"),
        ({"decoder.layers.3.conv.0.weight": (64, 64, 3, 3)}, "this is TAESD"),
        ({"body.0.block1.weight": (8, 8, 3, 3)}, "this is a T2I-Adapter"),
        ({"adapter.body.1.resnets.0.block1.weight": (8, 8, 3, 3)}, "this is a T2I-Adapter"),
        ({"time_embedding.cond_proj.weight": (8, 8)}, "this is a UNet that is told its guidance"),
        ({"lllite_unet_input_blocks_4_1.depth.weight": (8, 8)}, "this is a ControlNet-LLLite"),
        ({**SDXL, LAYER.format("down_blocks.1", 0, 1): (8,), LAYER.format("down_blocks.1", 1, 3):
          (8,)}, r"pruned SDXL UNet \(SSD-1B.*attentions of 2 and 4 layers"),
        ({**SDXL, LAYER.format("down_blocks.1", 0, 1): (8,), "mid_block.resnets.0.x": (8,)},
         "its middle has no attention"),
    ],
)  # fmt: skip
def test_kinds_that_serve_for_nothing_are_named(shapes, text):
    with pytest.raises(InputError, match=text):
        recognise({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


@pytest.mark.parametrize(
    "name, start, text",
    [
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "Git LFS"),
        ("a.ckpt", b"<!DOCTYPE html><html><head>", "is a web page"),
        ("a.safetensors", b"  <html>", "is a web page"),
        ("a.safetensors", b"\x80\x02}q\x00.", "is a pickle that is called .safetensors"),
        ("a.safetensors", b"PK\x03\x04rest", "is a pickle that is called .safetensors"),
        ("a.ckpt", b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
        ("flax_model.msgpack", b"\x83\xa6params", "Flax's msgpack"),
    ],
)
def test_what_is_no_checkpoint_is_named(name, start, text, tmp_path, capsys):
    (tmp_path / name).write_bytes(start)
    assert text in refused(capsys, "--unet", tmp_path / name, "-o", tmp_path / "out")


def test_containers_are_told_by_their_bytes(sources, tmp_path):
    """.sft is safetensors; so is a .ckpt that begins so."""
    unet = sources / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    for name in ("unet.sft", "unet.ckpt"):
        save_file(load_file(unet), tmp_path / name)
        assert convert("--unet", tmp_path / name, "-o", tmp_path / f"{name}-made") == 0
