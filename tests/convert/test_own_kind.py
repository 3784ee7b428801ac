"""A kind of network from outside: one file and one row, for every command."""

import json
from pathlib import Path

import numpy as np
import pytest
from converting import convert, refused
from safetensors.numpy import save_file

from mv2_jax import bundle, cli
from mv2_jax.convert import kinds
from mv2_jax.params import flatten

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")


@pytest.fixture
def acme(small, tmp_path, monkeypatch):
    """The kind of examples/own_kind.py in a row, and a file of it."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    monkeypatch.setitem(kinds.KINDS, "own_kind:KIND", "own_kind:KIND")
    state = small.controlnet().state_dict()
    path = tmp_path / "acme.safetensors"
    save_file({f"acme/{name}": value.numpy().copy() for name, value in state.items()}, path)
    return path


def test_one_file_and_one_row_are_a_kind(acme, sources, tmp_path, capsys):
    assert cli.main(["convert", str(acme)]) == 0
    said = capsys.readouterr().out
    assert "Acme's ControlNet" in said and "--controlnet, of Acme's" in said
    base = ("--unet", sources / "pipeline", "--controlnet")
    assert convert(*base, acme, "-o", tmp_path / "out") == 0
    assert convert(*base, sources / "controlnet", "-o", tmp_path / "plain") == 0
    made, plain = (bundle.read(tmp_path / name) for name in ("out", "plain"))
    assert made.config("control") == plain.config("control")
    for name, leaf in flatten(made.load("control")).items():
        np.testing.assert_array_equal(leaf, flatten(plain.load("control"))[name])
    # `mv2 verify` reads the file anew, by the kind's own converter.
    from mv2_jax.convert import compare

    origins = json.loads((tmp_path / "out" / "sources.json").read_text())
    built = compare.rebuild(made, origins)
    verdict = compare.component(made, built, "control")
    assert verdict.same and "diffusers' ControlNetModel" in verdict.against
    assert cli.main(["export", str(tmp_path / "out"), "control", "-o", str(tmp_path / "back")]) == 0
    assert (tmp_path / "back" / "config.json").is_file()
    capsys.readouterr()
    said = refused(capsys, "--unet", acme, "-o", tmp_path / "x")
    assert "holds Acme's ControlNet, not a UNet" in said


def test_what_does_not_fit_is_refused_by_its_own_words(acme, small, sources, tmp_path, capsys):
    small.vae(levels=3).save_pretrained(tmp_path / "vae")
    words = ("--unet", sources / "pipeline", "--controlnet", acme, "--vae", tmp_path / "vae")
    assert "times the latents' plane, but the VAE's are" in refused(
        capsys, *words, "-o", tmp_path / "x"
    )


@pytest.mark.slow
def test_a_flag_takes_one_from_outside(small, sources, tmp_path, monkeypatch, capsys):
    """Nothing inside the package is touched: `examples/own_kind.py`."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    known, path = dict(kinds.KINDS), tmp_path / "acme.safetensors"
    state = small.controlnet().state_dict()
    save_file({f"acme/{name}": value.numpy().copy() for name, value in state.items()}, path)
    assert cli.main(["convert", str(path)]) == 2
    assert "nothing known in it" in capsys.readouterr().err
    assert cli.main(["convert", str(path), "--kind", "own_kind:KIND"]) == 0
    assert "Acme's ControlNet" in capsys.readouterr().out
    base, out = ("--unet", sources / "pipeline", "--controlnet"), tmp_path / "out"
    said = refused(capsys, *base, path, "-o", out, "--kind", "own_kind:KINDS")
    assert "own_kind has no 'KINDS'; did you mean 'KIND'" in said
    assert convert(*base, path, "-o", out, "--kind", "own_kind:KIND") == 0
    assert convert(*base, sources / "controlnet", "-o", tmp_path / "plain") == 0
    made, plain = (flatten(bundle.read(o).load("control")) for o in (out, tmp_path / "plain"))
    assert all(np.array_equal(made[name], leaf) for name, leaf in plain.items())
    # The folder's notes say where the kind lies.
    assert cli.main(["verify", str(out), "--component", "control"]) == 0
    assert "same" in capsys.readouterr().out and kinds.KINDS == known
