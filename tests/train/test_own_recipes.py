"""T2I, I2V and V2V on one's own files, from a converted cascade: trained, packed, generated."""

import json
import subprocess
import sys

import media_clips
import numpy as np
import pytest

from mv2_jax import bundle, cascade, params
from mv2_jax import cli as command
from mv2_jax.infer import adapt
from mv2_jax.train import cli

QUICK = ("steps=3", "batch=2", "log_every=1", "sample.steps=1", "optim.warmup=1", "remat=False")
ASKED = {
    "t2i": ("data.aspects=True", "data.aspect_step=16"),
    "i2v": ("data.image_every=3", "data.image_batch=2", "data.decoded=0.5"),
    "v2v": (),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    return media_clips.cascade(folder / "cascade"), media_clips.clips(folder / "clips")


def test_several_settings_stand_behind_one_flag(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "mv2_jax.train.cli.main", lambda recipe, settings, **rest: seen.append(settings)
    )
    command.main(["train", "own/i2v", "--set", "cascade=a", "data.root=b", "--phase", "i2v"])
    command.main(["train", "own/i2v", "--set", "cascade=a", "--set", "data.root=b", "steps=3"])
    assert seen == [["cascade=a", "data.root=b"], ["cascade=a", "data.root=b", "steps=3"]]
    for wrong in (["--set", "cascade=a", "stray"], ["stray=1"]):
        assert command.main(["train", "own/i2v", *wrong]) == 2


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("t2i", marks=pytest.mark.slow),
        "i2v",
        pytest.param("v2v", marks=pytest.mark.long),  # in minutes, what I2V shows
    ],
)
def test_a_converted_cascade_learns_from_a_folder_and_generates(
    given, stage, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    start, clips = given
    asked = [*QUICK, *ASKED[stage], f"cascade={start}", f"data.root={clips}", "optim.lr=1e-2"]
    if stage != "i2v":
        asked += ["validate.every=2", "validate.batches=1", f"validate.root={clips}"]
    assert cli.main(f"own/{stage}", asked, out=str(tmp_path / "runs")) == 0
    logged = [
        json.loads(line)
        for line in (tmp_path / f"runs/own/{stage}/{stage}/metrics.jsonl").read_text().splitlines()
    ]
    assert all(np.isfinite(line["loss"]) for line in logged) and logged[-1]["step"] == 3
    told = [line["step"] for line in logged if np.isfinite(line.get("val_loss", np.nan))]
    assert told == ([] if stage == "i2v" else [2, 3])
    packed, old = bundle.read(tmp_path / f"runs/own/{stage}/cascade"), bundle.read(start)
    trained = {"t2i": "t2i_unet", "i2v": "motion_i2v", "v2v": "motion_v2v"}[stage]
    before = old.load("spatial" if stage == "t2i" else trained)
    assert params.digest(packed.load(trained)) != params.digest(before)
    for name in set(old.components) - {trained}:
        assert params.digest(packed.load(name)) == params.digest(old.load(name)), name
    assert packed.tokenizer == old.tokenizer and packed.tokenizer["class"] == "CLIPTokenizer"
    video = tmp_path / "out.mp4"
    # In a process of its own: so many cascades share no compiled programs.
    command = [sys.executable, "-m", "mv2_jax", "generate", "a clip", "-o", str(video)]
    subprocess.run([*command, "--weights", str(packed.folder)], check=True)
    assert len(media_clips.frames_of(video)) == 3


@pytest.mark.slow
def test_a_lora_is_trained_written_and_generates(given, tmp_path, monkeypatch, capsys):
    """The packed cascade, which has the LoRA merged, and the old one with its files, are one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    start, clips = given
    asked = [*QUICK, f"cascade={start}", f"data.root={clips}", "optim.lr=1e-2"]
    asked += ["train=('spatial/attn','motion','text_encoder')", "lora.rank=2", "lora.alpha=1.0"]
    assert cli.main("own/i2v", [*asked, "frozen_dtype=fp16"], out=str(tmp_path / "runs")) == 0
    said = capsys.readouterr().out
    assert "the LoRA moves the network's answer to fixed noise by" in said
    packed, old = bundle.read(tmp_path / "runs/own/i2v/cascade"), bundle.read(start)
    loras = [f"{kind}.diffusers.safetensors" for kind in ("lora", "motion_lora")]
    found = adapt.given([f"{packed.folder / loras[0]}@i2v,v2v", f"{packed.folder / loras[1]}@i2v"])
    four = adapt.Merged(old, found).into(cascade.load(old))
    trained = {"spatial", "motion_i2v", "text_encoder"}
    for name in old.components:
        ours, theirs = params.flatten(four.params[name]), params.flatten(packed.load(name))
        for path, leaf in theirs.items():
            np.testing.assert_allclose(ours[path], leaf, rtol=1e-3, atol=1e-6)  # of fp16
        before = params.digest(old.load(name))
        assert (params.digest(packed.load(name)) != before) == (name in trained), name
    for own, name in (("t2i_unet", "spatial"), ("t2i_text_encoder", "text_encoder")):
        assert params.digest(packed.load(own)) == params.digest(old.load(name))
