"""`mv2 convert` on files as they are found: with bookkeeping, in two precisions, side by side."""

import argparse
import shutil
import sys
import types

import numpy as np
import pytest
from converting import convert, refused
from safetensors.numpy import load_file, save_file

from mv2_jax import bundle, cli
from mv2_jax.convert import ldm
from mv2_jax.params import flatten

torch = pytest.importorskip("torch")


def test_checkpoints_as_model_sites_have_them(sources, small, tmp_path, capsys):
    """A training run's bookkeeping and mergers' leftovers stand in no network's way."""
    named = small.as_ldm(small.unet().state_dict(), ldm.unet_modules(2, 1))
    state = {f"model.diffusion_model.{name}": value for name, value in named.items()}
    stray = ("cond_stage_model.logit_scale", "cond_stage_model.text_projection")
    state |= dict.fromkeys(stray, torch.ones(2, 2))
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback
    packages = ("pytorch_lightning", "pytorch_lightning.callbacks")
    with pytest.MonkeyPatch.context() as patch:
        for name in packages:
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        run = {"callbacks": {callback: {"best": torch.ones(())}}, "global_step": np.int64(7)}
        torch.save({"state_dict": state, **run}, tmp_path / "v1-5.ckpt")
    assert convert("--unet", tmp_path / "v1-5.ckpt", "-o", tmp_path / "out") == 0
    torch.save({"state_dict": state, "args": argparse.Namespace()}, tmp_path / "other.ckpt")
    line = refused(capsys, "--unet", tmp_path / "other.ckpt", "-o", tmp_path / "x")
    assert "it wants argparse.Namespace, which is not run" in line


def test_a_precision_is_preferred_where_there_is_one(sources, small, tmp_path, capsys):
    for part in ("unet", "vae", "text_encoder"):
        shutil.copytree(sources / "pipeline" / part, tmp_path / "mixed" / part)
    unet = tmp_path / "mixed" / "unet" / "diffusion_pytorch_model.safetensors"
    half = {name: value.astype(np.float16) for name, value in load_file(unet).items()}
    save_file(half, unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    flags = ["--unet", tmp_path / "mixed", "--dtype", "keep", "--variant", "fp16"]
    assert convert(*flags, "-o", tmp_path / "out") == 0
    made = bundle.read(tmp_path / "out")
    kinds = {
        name: {v.dtype.name for v in flatten(made.load(name)).values()}
        for name in ("spatial", "vae")
    }
    assert kinds == {"spatial": {"float16"}, "vae": {"float32"}}
    line = refused(
        capsys, "--unet", sources / "pipeline", "--variant", "fp16", "-o", tmp_path / "x"
    )
    assert "--variant fp16: no source has fp16 weights" in line


def test_the_vision_encoder_beside_an_adapter_is_taken_where_it_fits(sources, small, tmp_path):
    for name, width in (("fits", 48), ("other", 64)):
        (tmp_path / name).mkdir()
        shutil.copy(sources / "adapter.safetensors", tmp_path / name)
        encoder = small.vision() if name == "fits" else small.vision(width=width)
        encoder.save_pretrained(tmp_path / name / "image_encoder")
        adapter = tmp_path / name / "adapter.safetensors"
        out = tmp_path / f"{name}-made"
        assert convert("--unet", sources / "pipeline", "--image-adapter", adapter, "-o", out) == 0
        assert ("image_encoder" in bundle.read(out).components) == (name == "fits")


def test_weights_of_a_lora_are_numbers(sources, tmp_path, capsys):
    unet = ["--unet", sources / "pipeline", "-o", tmp_path / "out"]
    for weight in ("nan", "inf", "-inf"):
        line = refused(capsys, *unet, "--lora", f"{tmp_path / 'x.safetensors'}:{weight}")
        assert "the weight is no finite number" in line


@pytest.mark.parametrize("form", ["scaled_fp8", "comfy_quant"])
def test_scaled_float8_is_its_numbers_times_their_scale(sources, tmp_path, capsys, form):
    """ComfyUI's two forms; their product by torch. Scales ignored by name are used all the same."""
    from safetensors.torch import save_file as save_tensors

    good = load_file(sources / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    scale = {"scaled_fp8": "scale_weight", "comfy_quant": "weight_scale"}[form]
    held, wanted = {}, {}
    for name, value in good.items():
        weight = torch.from_numpy(value)
        if ".attn" in name and name.endswith(".weight"):
            factor = weight.abs().max() / 448
            if name.endswith("to_q.weight"):  # one for each row
                factor = weight.abs().amax(dim=1) / 448
            wide = factor.reshape(-1, 1) if factor.ndim else factor
            held[name] = (weight / wide).to(torch.float8_e4m3fn)
            stem = name.removesuffix("weight")
            held[f"{stem}{scale}"] = factor
            if form == "comfy_quant":
                told = torch.frombuffer(
                    bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8
                )
                held[f"{stem}comfy_quant"], held[f"{stem}input_scale"] = told, torch.ones(())
            weight = held[name].float() * wide
        held.setdefault(name, weight)
        wanted[name] = weight.numpy()
    if form == "scaled_fp8":
        held["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    save_tensors(held, tmp_path / "unet.safetensors")
    save_file(wanted, tmp_path / "plain.safetensors")
    made = {}
    for name, more in (("unet", ["--ignore", "*.scale_weight"]), ("plain", [])):
        source, out = tmp_path / f"{name}.safetensors", tmp_path / name
        assert convert("--unet", source, *more, "--dtype", "float32", "-o", out) == 0
        made[name] = flatten(bundle.read(out).load("spatial"))
    for name, leaf in made["plain"].items():
        assert np.array_equal(leaf, made["unet"][name]), name
    capsys.readouterr()
    assert cli.main(["convert", str(tmp_path / "unet.safetensors")]) == 0
    assert "a UNet of SD1.5's kind" in capsys.readouterr().out


def test_other_quantisations_are_refused_by_name(tmp_path, capsys):
    told = np.frombuffer(b'{"format": "nvfp4"}', np.uint8)
    layer = {"conv_in.weight": np.zeros((4, 4), np.uint8), "conv_in.weight_scale": np.ones(1, "f4")}
    file = tmp_path / "unet.safetensors"
    for held, text in (
        ({**layer, "conv_in.comfy_quant": told}, "conv_in.weight is quantised as nvfp4"),
        (layer, "conv_in.weight is quantised as uint8"),
        ({"a.scale_weight": np.ones(1, "f4")}, "a.scale_weight has no weight beside it"),
        ({"scaled_fp8": np.ones(1, "f4")}, "no scale of any weight"),
    ):
        save_file(held, file)
        assert text in refused(capsys, "--unet", file, "-o", tmp_path / "out")


def test_a_folder_that_is_there_is_said_before_the_work(sources, tmp_path, capsys):
    flags = ["--unet", sources / "no-such-file", "-o", tmp_path]
    (tmp_path / "file").write_text("")
    assert "already exists and has no cascade.json" in refused(capsys, *flags)
    (tmp_path / bundle.INDEX).write_text("{}")
    assert "choose another folder, or say --replace" in refused(capsys, *flags)
