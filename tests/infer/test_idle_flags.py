"""Flags without effect: refused where no stage hears them, said where some do not."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from mv2_jax import bundle, cli
from mv2_jax.infer.generate import Made

PROMPT = "a red ball"
STEPS = "--t2i-steps 1 --i2v-steps 1 --v2v-steps 2".split()


def folder(where, **rules):
    held = tiny.write(where.with_name("plain"), tiny.make())
    parts = {
        name: bundle.Part(held.load(name), part.config, part.licence, part.source)
        for name, part in held.components.items()
    }
    stages = {
        name: dataclasses.replace(stage, rule=rules.get(name, "public"))
        for name, stage in held.stages.items()
    }
    written = {"name": "public", "defaults": held.defaults}
    return bundle.write(where, parts, stages, held.tokenizer, **written).folder


@pytest.fixture
def generate(tmp_path, monkeypatch, capsys):
    """`mv2 generate` with flags: its exit code and what it said of them. Nothing is made."""
    monkeypatch.chdir(tmp_path)

    def make(four, prompts, numbers, **rest):
        made.append(numbers)
        clip = np.zeros((1, 3, 48, 48, 3), np.uint8)
        return Made(clip[:, 0], clip, clip, clip)

    made = []
    monkeypatch.setattr("mv2_jax.infer.generate.make", make)

    def run(weights, *flags, prompt=(PROMPT,)):
        words = ["generate", *prompt, "--weights", str(weights), *STEPS, "--force", *flags]
        code = cli.main(words)
        lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
        return code, [line for line in lines if line.startswith(("mv2: error", "mv2: warning"))]

    run.made = made
    return run


def test_a_flag_that_no_stage_hears_is_refused(tmp_path, generate):
    public = folder(tmp_path / "public")
    code, lines = generate(public, "--image-guidance", "3")
    told = "the guidance rule 'public' has no scale for the picture; 'apart' has one"
    assert (code, lines) == (2, [f"mv2: error: --image-guidance has no effect: {told}"])
    ones = ["--t2i-guidance", "1", "--i2v-guidance", "1", "--v2v-guidance", "1"]
    code, lines = generate(public, *ones, "--guidance-rescale", "0.5")
    told = "--guidance-rescale has no effect: nothing is guided at a guidance of 1"
    assert (code, lines) == (2, [f"mv2: error: {told}"])


def test_what_some_stages_do_not_hear_is_said(tmp_path, generate):
    mixed = folder(tmp_path / "mixed", i2v="apart")
    flags = ["--t2i-guidance", "1", "--i2v-guidance", "1", "--v2v-guidance", "1"]
    flags += [
        "--image-guidance",
        "1",
        "--negative",
        "snow",
        "--overlap",
        "1",
        "--windows",
        "closed",
    ]
    code, lines = generate(mixed, *flags, "--steps-offset", "1", "--spacing", "trailing")
    none, public = "has no effect", "the guidance rule 'public' has no scale for the picture"
    assert code == 0 and lines == [
        f"mv2: warning: --image-guidance {none} in V2V: {public}; 'apart' has one",
        f"mv2: warning: --negative {none}: nothing is guided at a guidance of 1",
        f"mv2: warning: --windows {none}: the frames fit into one window",
        f"mv2: warning: --overlap {none}: the frames fit into one window",
        f"mv2: warning: --steps-offset {none}: the timesteps are not spaced as leading ones are",
    ]
    assert "image_guidance" in generate.made[0]["i2v"]
    assert "image_guidance" not in generate.made[0]["v2v"]
    # Its sidecar makes it again under another rule, and says what is no longer heard.
    side = json.loads(Path("out.json").read_text())
    side["settings"]["i2v"]["image_guidance"] = 3.0
    Path("out.json").write_text(json.dumps(side))
    flags = ["--from", "out.json", "--guidance-rule", "public", "-o", "b.mp4"]
    code, lines = generate(mixed, *flags, prompt=())
    assert code == 0
    heard = f"mv2: warning: the earlier video's i2v image_guidance {none}: {public}; 'apart' has"
    assert any(line.startswith(heard) for line in lines)
