"""An interpolator from outside the package: trained, saved, reloaded, measured, in every place."""

import json
from pathlib import Path

import av
import numpy as np
import pytest

from mv2_jax import bundle, cli, components, config, params
from mv2_jax.errors import InputError
from mv2_jax.infer import interpolators, media

FOLDER = Path(__file__).parents[2] / "examples"
NAME = "own_interpolator:FADE"


@pytest.fixture
def own(monkeypatch):
    """The example, where PYTHONPATH names its folder."""
    monkeypatch.syspath_prepend(FOLDER)
    import own_interpolator

    return own_interpolator


@pytest.fixture
def clip(tmp_path):
    """Nine frames between two pictures, slow at both ends."""
    y, x = np.mgrid[:24, :40] / 40
    a, b = np.stack((x, y, x), -1), np.stack((1 - y, x, y), -1)
    part = np.linspace(0, 1, 9)
    part = part**2 / (part**2 + (1 - part) ** 2)
    frames = a + (b - a) * part[:, None, None, None]
    path = tmp_path / "clip.mp4"
    media.write_video(path, (frames * 255).astype(np.uint8), 10)
    return path


@pytest.fixture
def trained(own, tmp_path):
    """A file of weights that were fitted to a fade that is slow at both ends."""
    random = np.random.default_rng(0).uniform(-1, 1, (2, 1, 5, 7, 3)).astype(np.float32)
    times = np.float32([[0.2, 0.4, 0.7]])
    part = (times**2 / (times**2 + (1 - times) ** 2))[..., None, None, None]
    tree = own.train(*random, random[0] * (1 - part) + random[1] * part, times)
    np.testing.assert_allclose(np.exp(tree["pace"]), 2, atol=0.02)
    path = str(tmp_path / "fade.safetensors")
    params.save(path, tree, {"config": config.to_dict(own.FadeConfig())})
    return path


def test_the_flag_takes_its_name_and_files_of_its_weights(own, trained, clip, tmp_path, capsys):
    given = ["bench", "vfi", str(clip), "--times", "4", "--views", "1", "--methods", "blend,mv2"]
    assert cli.main([*given, "--vfi", f"{NAME},{trained}"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    scores = {line[1].rstrip(","): line for line in lines if line[0] == "mv2"}
    even, fitted = (float(scores[name][4]) for name in (NAME, "fade"))
    assert scores.keys() == {NAME, "fade"} and even != fitted
    out = tmp_path / "out.mp4"
    assert cli.main(["interpolate", str(clip), "-o", str(out), "--vfi", trained]) == 0
    with av.open(str(out)) as made:
        assert sum(1 for _ in made.decode(video=0)) == 17


def test_a_cascade_folder_holds_it(own, trained, tmp_path, tiny_weights):
    made = bundle.read(tiny_weights)
    parts = {
        name: bundle.Part(made.load(name), c.config, c.licence, c.source)
        for name, c in made.components.items()
    }
    parts["vfi_fade"] = bundle.Part(params.load(trained), own.FadeConfig(), "MIT", "here")
    folder = bundle.write(tmp_path / "own", parts, made.stages, made.tokenizer, name="own")
    named = json.loads((folder.folder / bundle.INDEX).read_text())["components"]["vfi_fade"]
    assert named["config"]["class"] == "own_interpolator:FadeConfig"
    tree, cfg = components.own_interpolator(bundle.read(folder.folder))
    assert cfg == own.FadeConfig() and abs(float(np.exp(tree["pace"][0])) - 2) < 0.02


def test_generate_takes_its_name_and_its_sidecar_keeps_it(
    own, tmp_path, tiny_weights, fake_cascade, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    both = f"rife+{NAME}"
    given = ["generate", "a red ball", "--weights", str(tiny_weights)]
    for name in (NAME, both):
        out = tmp_path / f"{len(name)}.mp4"
        assert cli.main([*given, "--vfi", name, "-o", str(out)]) == 0, capsys.readouterr()
        side = json.loads(out.with_suffix(".json").read_text())
        assert side["choices"]["vfi"]["network"] == name
        assert "interpolators" not in side["weights"]
    assert cli.main(["generate", "--from", str(out.with_suffix(".json"))]) == 0


def test_what_cannot_serve_is_said(own, monkeypatch):
    for name, said in (
        ("own_interpolator:FAD", "has no 'FAD'; did you mean 'FADE'"),
        ("own_interpolator:weights", "is the function weights, not an Interpolator"),
        ("own_interpolater:FADE", "there is no module 'own_interpolater'"),
    ):
        with pytest.raises(InputError, match=said):
            interpolators.check(name)
    assert interpolators.check(f"rife+{NAME}") and not interpolators.is_file(NAME)
    assert interpolators.is_file("gone.safetensors")
    both = interpolators.described(f"rife+{NAME}")
    assert both.members[1] == own.FadeConfig()
