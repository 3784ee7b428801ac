"""The whole cascade on SDXL: converted, compared with torch, run, and given back."""

import json

import pytest
from safetensors.numpy import save_file

from mv2_jax import bundle, cli

pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(small, sources, tmp_path_factory):
    root = tmp_path_factory.mktemp("sdxl")
    for name, part in small.sdxl().items():
        part.save_pretrained(root / "sdxl" / name)
    small.sdxl_controlnet().save_pretrained(root / "controlnet")
    save_file(small.sdxl_adapter(), root / "adapter.safetensors")
    flags = ["--unet", root / "sdxl", "--motion", sources / "motion", "--norm-scope", "clip"]
    flags += ["--image-adapter", root / "adapter.safetensors", "--controlnet", root / "controlnet"]
    flags += ["--image-encoder", sources / "vision", "-o", root / "cascade"]
    sizes = "--t2i-size 16x16 --i2v-size 16x16 --v2v-size 16x16 --frames 3 --dtype keep".split()
    assert cli.main(["convert", *map(str, flags), *sizes]) == 0
    return bundle.read(root / "cascade")


def test_it_is_one_sdxl_for_every_stage(whole):
    assert set(whole.components) == {
        *("text_encoder", "text_encoder_2", "vae", "spatial", "motion_i2v", "motion_v2v"),
        *("image_encoder", "image_attn", "control"),
    }
    assert whole.config("vae").scaling_factor == 0.18215  # its folder says so
    assert whole.config("control").unet.pooled_width == 24
    moving = whole.stages["i2v"]
    assert moving.unet.pooled_width == 24 and moving.unet.motion.norm_scope == "clip"
    assert (moving.schedule.kind, moving.schedule.beta_end) == ("scaled_linear", 0.02)
    assert whole.stages["t2i"].schedule.beta_end == 0.012


def test_every_component_is_torchs(whole, capsys):
    assert cli.main(["verify", str(whole.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 9 and all("the same as" in line for line in lines)
    for line in lines:
        assert float(line.split()[1]) < 5e-6, line


def test_it_makes_a_video(whole, tmp_path):
    steps = "--t2i-steps 1 --i2v-steps 1 --v2v-steps 1 --between 1".split()
    out = tmp_path / "v.mp4"
    words = ["a lighthouse in a storm, oil painting", "--weights", str(whole.folder), "-o"]
    assert cli.main(["generate", *words, str(out), *steps]) == 0
    side = json.loads(out.with_suffix(".json").read_text())
    assert side["result"]["frames"] == 5 and out.stat().st_size > 500


def test_its_controlnet_goes_back(small, whole, tmp_path):
    import torch

    back = tmp_path / "back"
    assert cli.main(["export", str(whole.folder), "control", "-o", str(back)]) == 0
    ours = diffusers.ControlNetModel.from_pretrained(back).state_dict()
    theirs = small.sdxl_controlnet().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
