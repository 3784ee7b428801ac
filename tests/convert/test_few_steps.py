"""Networks and LoRAs that sample in few steps, told by their layers, titles and names."""

import numpy as np
import pytest
from converting import convert
from safetensors.numpy import save_file

from mv2_jax import bundle, cli
from mv2_jax.convert import schedules

pytest.importorskip("torch"), pytest.importorskip("diffusers")


@pytest.mark.parametrize(
    ("name", "metadata", "expected"),
    [
        ("sdxl_lightning_4step_unet", {}, "trailing; euler in 4 steps (few steps by its name"),
        ("dmd2_sdxl_4step_unet_fp16", {}, "trailing; lcm in 4 steps (few steps by its name: dmd2"),
        ("Hyper-SDXL-8steps-Unet", {}, "trailing; ddim in 8 steps (few steps by its name: hyper"),
        ("realvisxlV40_v40LightningBakedvae", {}, "trailing; euler in 4 steps (few steps by"),
        ("sd_xl_turbo_1.0", {}, "trailing; euler_a in 4 steps (few steps by its name: turbo)"),
        ("mine", {"modelspec.title": "LCM of it"}, "leading; lcm in 4 steps (few steps by its"),
        ("Hyper-SDXL-1step-Unet", {}, "a single step from timestep 800, which is not supported"),
        ("hyperrealism_v3", {}, "leading; ddim in 25 steps (nothing in it says otherwise)"),
    ],
)
def test_a_distilled_network_alone_is_told_by_its_name(
    small, tmp_path, capsys, name, metadata, expected
):
    """Neither its tensors nor a scheduler say it; in 25 guided steps it is no picture."""
    from safetensors.torch import save_file as save_torch

    path = tmp_path / f"{name}.safetensors"
    save_torch(small.unet().state_dict(), path, metadata)
    assert cli.main(["convert", str(path)]) == 0
    assert expected in capsys.readouterr().out


def test_what_its_name_says_is_stored_and_what_the_user_says_counts_before(
    small, sources, tmp_path, capsys
):
    """Lightning's network of one step predicts the sample, its README says."""
    from safetensors.torch import save_file as save_torch

    from mv2_jax.convert import assemble, compare, compare_stages, distilled, verify
    from mv2_jax.convert.checkpoint import open_checkpoint

    path = tmp_path / "sdxl_lightning_1step_unet_x0.safetensors"
    save_torch(small.unet().state_dict(), path)
    base = ["--t2i-vae", sources / "pipeline", "--t2i-text-encoder", sources / "pipeline"]
    flags = ["--unet", sources / "pipeline", "--t2i", path, *base]
    assert convert(*flags, "-o", tmp_path / "out") == 0
    assert "trailing; euler, 1 steps, guidance 1 (few steps by its" in capsys.readouterr().out
    made = bundle.read(tmp_path / "out")
    assert made.stages["t2i"].schedule.prediction == "x0"
    origins, asked = verify.read_origins(made)
    built = compare.rebuild(made, origins)
    assert compare_stages.stage(made, built, asked, "t2i").same
    source = open_checkpoint(str(path))
    wanted = assemble.Wanted(unet=str(path))
    assert distilled.by_name(wanted, source)[0].t2i_few_steps == "lightning"
    for said in ({"t2i_few_steps": "none"}, {"sampled": schedules.Override("sd")}):
        wanted = assemble.Wanted(unet=str(path), **said)
        assert distilled.by_name(wanted, source) == (wanted, None)


def test_a_lora_that_is_called_a_few_step_one_is_asked_about(sources, tmp_path, capsys):
    """Its tensors do not say what it was distilled to; its name is no more than a hint."""
    q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    halves = {f"{q}.lora_A.weight": np.ones((2, 64), np.float32)}
    halves[f"{q}.lora_B.weight"] = np.zeros((64, 2), np.float32)
    path = tmp_path / "Hyper-SD15-8steps-lora.safetensors"
    save_file(halves, path)
    flags = ["--unet", sources / "pipeline", "--lora", path, "-o", tmp_path / "out", "--replace"]
    assert convert(*flags) == 0
    assert "--t2i-few-steps hyper samples t2i so" in capsys.readouterr().out
    assert convert(*flags, "--t2i-few-steps", "hyper") == 0
    said = capsys.readouterr().out
    assert "few-step LoRA" not in said and "trailing; ddim, 8 steps, guidance 1" in said


@pytest.mark.parametrize(
    ("name", "metadata", "expected"),
    [
        ("lcm-lora-sdv1-5/pytorch_lora_weights", {}, ("lcm", 4, 1.0)),
        ("TCD-SD15-LoRA/pytorch_lora_weights", {}, ("tcd", 4, 1.0)),
        ("Hyper-SD15-4steps-lora", {}, ("ddim", 4, 1.0)),
        ("Hyper-SD15-12steps-CFG-lora", {}, ("ddim", 12, 5.0)),
        ("sdxl_lightning_2step_lora", {}, ("euler", 2, 1.0)),
        ("mine", {"modelspec.title": "LCM LoRA"}, ("lcm", 4, 1.0)),
        ("mine", {}, ("ddim", 25, 7.5)),
    ],
)
def test_a_few_step_lora_sets_how_pictures_are_sampled(
    sources, tmp_path, capsys, name, metadata, expected
):
    """Distillation changes the layers that read the time; which one it was, the name says."""
    layer = "lora_unet_down_blocks_0_resnets_0_time_emb_proj"
    halves = {f"{layer}.lora_down.weight": np.ones((2, 256), np.float32)}
    halves |= {f"{layer}.lora_up.weight": np.ones((64, 2), np.float32)}
    path = tmp_path / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(halves, path, metadata)
    out, unet = tmp_path / "out", ["--unet", sources / "pipeline"]
    assert convert(*unet, "--lora", path, "-o", out) == 0
    said = capsys.readouterr().out
    made = bundle.read(out)
    still = made.stages["t2i"]
    assert (still.sampler, still.steps, made.numbers["t2i"].guidance) == expected
    if name == "mine" and not metadata:
        assert "as few-step LoRAs do, and its name says none of them" in said
        return
    assert "is a few-step LoRA by its layers" in said
    if name.startswith("Hyper-SD15-12"):  # once: it takes seconds
        assert cli.main(["verify", str(out), "--component", "spatial"]) == 0
        assert convert(*unet, "--lora", path, "--t2i-few-steps", "none", "-o", tmp_path / "no") == 0
        assert bundle.read(tmp_path / "no").stages["t2i"].steps == 25


def test_a_few_step_lora_of_the_video_stages_leaves_pictures_as_they_are(sources, tmp_path):
    layer = "lora_unet_down_blocks_0_resnets_0_time_emb_proj"
    halves = {f"{layer}.lora_down.weight": np.ones((2, 256), np.float32)}
    halves |= {f"{layer}.lora_up.weight": np.ones((64, 2), np.float32)}
    path = tmp_path / "lcm.safetensors"
    save_file(halves, path)
    flags = ["--unet", sources / "pipeline", "--motion", sources / "motion"]
    assert convert(*flags, "--lora", f"{path}@i2v,v2v", "-o", tmp_path / "out") == 0
    stages = bundle.read(tmp_path / "out").stages
    assert [stages[name].sampler for name in ("t2i", "i2v", "v2v")] == ["ddim", "lcm", "lcm"]
    assert stages["i2v"].steps == 6
