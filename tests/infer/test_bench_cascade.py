"""`mv2 bench cascade` on tiny networks: both sides run in turn and compute the same."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from mv2_jax import cli
from mv2_jax.convert.beside import cases
from mv2_jax.infer import bench_cascade

REST = sorted(set(bench_cascade.NETWORKS) - {"clip"})


def told(capfd, name, *flags):
    """What it says of a network, and the exit code."""
    flags = ["--small", "--json", "--threads", "1", "--only", name, *flags]
    code = cli.main(["bench", "cascade", *flags])
    return json.loads(capfd.readouterr().out), code


def check(found, code, runs):
    assert code == 0 and found["difference"] <= found["bound"]
    for side in ("torch", "mv2"):
        each = found[side]["each"]
        assert len(each) == runs and all(run["wall"] > 0 and run["cpu"] > 0 for run in each)
        assert found[side]["peak_gib"] > 0.05
    for ratio, field in (("wall", "wall_s"), ("cpu", "cpu_s"), ("memory", "peak_gib")):
        assert found["ratios"][ratio] == found["torch"][field] / found["mv2"][field]
    assert found["mv2"]["wall_s"] == sorted(run["wall"] for run in found["mv2"]["each"])[runs // 2]


def test_a_text_encoder_beside_transformers(capfd):
    check(*told(capfd, "clip", "--runs", "3"), 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_the_other_networks_beside_torch(capfd, name):
    check(*told(capfd, name, "--runs", "1"), 1)


def test_outputs_that_differ_are_said_and_fail(monkeypatch, capsys):
    side = {"wall_s": 2.0, "peak_gib": 1.0}
    made = {"network": "vae", "torch": side, "mv2": side, "difference": 0.5, "bound": 1e-4}
    made["ratios"] = dict.fromkeys(("wall", "cpu", "memory"), 1.0)
    monkeypatch.setattr(bench_cascade, "beside", lambda *args, **flags: made)
    assert cli.main(["bench", "cascade", "--only", "vae"]) == 1
    assert "NOT THE SAME" in capsys.readouterr().out


def test_sdxl_is_asked_for(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(bench_cascade, "line", str)

    def beside(name, *args, **flags):
        ran.append(name)
        return {"difference": 0, "bound": 0}

    monkeypatch.setattr(bench_cascade, "beside", beside)
    for flags in ([], ["--sdxl"], ["--only", "sdxl,clip"]):
        assert cli.main(["bench", "cascade", *flags]) == 0
    small = [name for name in bench_cascade.NETWORKS if name != "sdxl"]
    assert ran == [*small, *small, "sdxl", "sdxl", "clip"]


def test_the_names_are_those_of_the_cases():
    assert set(bench_cascade.NETWORKS) == set(cases.CASES)


def test_what_is_missing_or_unknown_is_one_line(monkeypatch, capsys):
    assert cli.main(["bench", "cascade", "--only", "clap"]) == 2
    assert "'clap'; did you mean 'clip'?" in capsys.readouterr().err
    monkeypatch.setattr(bench_cascade.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench", "cascade"]) == 2
    assert "pip install 'mv2-jax[convert]'" in capsys.readouterr().err


def test_a_side_that_dies_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(bench_cascade.sys, "executable", "/bin/false")
    assert cli.main(["bench", "cascade", "--only", "clip"]) == 2
    assert "clip: the side of torch ended with code 1" in capsys.readouterr().err
