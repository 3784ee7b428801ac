"""`mv2 convert FILE` alone, `--ignore`, and interpolators through the same command."""

import numpy as np
import pytest
from converting import convert, refused
from safetensors.numpy import load_file, save_file

from mv2_jax import bundle, cli, params
from mv2_jax.config import RIFEConfig
from mv2_jax.convert.engine import export
from mv2_jax.convert.kinds import interpolator
from mv2_jax.convert.tables import rife
from mv2_jax.stages import vfi as stage

torch = pytest.importorskip("torch")


def alone(capsys, *arguments):
    capsys.readouterr()
    assert cli.main(["convert", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def flownet(tmp_path_factory):
    """RIFE's file as its publisher has it."""
    tree, _ = stage.shipped()
    path = tmp_path_factory.mktemp("rife") / "flownet.pkl"
    named = export(tree, rife.rules())
    torch.save({f"module.{name}": torch.tensor(np.array(v)) for name, v in named.items()}, path)
    return path


def test_every_kind_says_what_it_is_and_serves_for(sources, small, flownet, tmp_path, capsys):
    file = {"unet.mid_block.x.lora_A.weight": np.ones((2, 3), np.float32)}
    save_file(
        {**file, "unet.mid_block.x.lora_B.weight": file.popitem()[1].T}, tmp_path / "l.safetensors"
    )
    small.sparse().save_pretrained(tmp_path / "sparse")
    for source, what, serves in (
        (sources / "pipeline" / "unet", "a UNet of SD1.5's kind, in diffusers names", "--unet"),
        (sources / "pipeline" / "vae", "a VAE (latents scaled by 0.18215)", "--vae"),
        (sources / "pipeline" / "text_encoder", "a CLIP text encoder (width 32", "--text-enc"),
        (sources / "vision", "a CLIP vision encoder (width 48", "--image-encoder"),
        (sources / "motion", "motion modules (8 frames, no middle", "--motion"),
        (sources / "controlnet", "a ControlNet for a UNet of SD1.5's kind", "--controlnet"),
        (sources / "adapter.safetensors", "an IP-Adapter-Plus (4 tokens", "--image-adapter"),
        (tmp_path / "sparse", "a SparseCtrl encoder of pictures", "--controlnet"),
        (tmp_path / "l.safetensors", "a LoRA: 2 tensors", "--lora"),
        (flownet, "an interpolator (RIFE)", "--vfi"),
    ):
        said = alone(capsys, source)
        assert said.startswith(what) and f"for {serves}" in said.replace("    ", ""), said
    said = alone(capsys, sources / "pipeline")
    assert (
        said.count("\n    for ") == 3
        and "predicts eps over scaled linear betas, leading; ddim" in said
    )
    line = refused(capsys, "--text-encoder", "x")
    assert "wants --unet SOURCE and -o DIR, or a FILE alone" in line
    assert "stands alone, without --vae" in refused(capsys, "x.ckpt", "--vae", "y.ckpt")


def test_interpolators_are_converted_by_the_same_command(flownet, sources, tmp_path, capsys):
    out = tmp_path / "rife.safetensors"
    assert ": RIFE, 5," in alone(capsys, flownet, "-o", out)
    tree, cfg = stage.shipped()
    assert params.digest(params.load(out)) == params.digest(tree) and cfg == RIFEConfig()
    assert "already exists" in refused(capsys, flownet, "-o", out)
    assert "call it" in refused(capsys, flownet, "-o", tmp_path / "x")
    unet = sources / "pipeline" / "unet"
    assert "neither EMA-VFI nor" in refused(capsys, unet, "-o", tmp_path / "x.safetensors")
    assert convert("--unet", unet, "--vfi", flownet, "-o", tmp_path / "c") == 0
    made = bundle.read(tmp_path / "c")
    assert made.config(interpolator.component(cfg)) == cfg
    assert params.digest(made.load("rife")) == params.digest(tree)


def test_left_over_tensors_are_waved_through_by_name(sources, tmp_path, capsys):
    good = load_file(sources / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    more = {f"merge.{name}": np.ones(3, np.float32) for name in ("alpha", "ratio")}
    save_file({**good, **more}, tmp_path / "merged.safetensors")
    flags = ["--unet", tmp_path / "merged.safetensors", "-o", tmp_path / "out"]
    assert "left out with --ignore 'merge.*'" in refused(capsys, *flags)
    assert convert(*flags, "--ignore", "merge.*") == 0
    assert "a UNet of SD1.5's kind" in alone(capsys, flags[1], "--ignore", "merge.*")
    flags[-1] = tmp_path / "other"
    assert "1 missing" in refused(capsys, *flags, "--ignore", "merge.*", "--ignore", "conv_in.bias")
