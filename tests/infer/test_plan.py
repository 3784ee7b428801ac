"""`mv2 plan`: what is refused before anything is loaded, and plans for absent machines."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import jax
import pytest
import tiny

from mv2_jax import cli
from mv2_jax.infer import machines
from mv2_jax.infer.planning import sources


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("plan") / "cascade", tiny.make()).folder


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Machines are the CPU's emulated devices; their compiler is there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(machines, "lacking", lambda name: None)
    monkeypatch.setattr(
        machines, "devices", lambda name: jax.devices()[: machines.machine(name).count]
    )


def refusal(capsys, *arguments):
    assert cli.main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err


def planned(capsys, folder, *arguments, code=0):
    words = ["plan", *arguments, "--weights", str(folder), "--dtype", "float32", "--json"]
    assert cli.main(words) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["i2v", "--on", "v5f:2x4"], "did you mean 'v5"),
        (["i2v", "--on", "h100:many"], "as in h100:8"),
        (["i2v", "--on", "v5e"], "as in v5e:2x4"),
        (["i2v", "--on", "v5p:2x2"], "as in v5p:2x2x1"),
        (["i2x", "--on", "h100"], "invalid choice: 'i2x'"),
        (["i2v"], "required: --on"),
        (["i2v", "--on", "h100", "--batch", "0"], "takes a whole number from 1 to 1024, not"),
        (["i2v", "--on", "h100", "--price", "-1"], "takes an amount of 0 or more"),
        (["i2v", "--on", "h100", "--quick", "--units"], "--quick compiles nothing"),
        (["i2v", "--on", "h100", "--compile-second", "9"], "did you mean '--compile-seconds'"),
        (["i2v", "--on", "h100", "--compile-seconds", "-1"], "a whole number from 0 to 86400"),
        (["vae", "--on", "h100", "--train"], "--train goes with t2i, i2v, v2v, not vae"),
        (["i2v", "--on", "h100:8", "--mesh", "contex=8"], "did you mean 'context'"),
        (["i2v", "--on", "h100:8", "--mesh", "data=2,tensor=2"], "multiply to 4, and the machine"),
        (["i2v", "--on", "h100", "--preset", "papper"], "did you mean 'paper'"),
        (["i2v", "--on", "h100", "--i2v-steps", "0"], "--i2v-steps is 0"),
    ],
)
def test_bad_arguments_are_one_line(capsys, arguments, says):
    assert says in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--size", "60x40"], "multiple of 8"),
        (["--vae-tile", "13"], "tiles are multiples of 32"),
        (["--weights", "nowhere"], "no weights at nowhere"),
    ],
)
def test_what_the_cascade_cannot_do_is_one_line(capsys, folder, arguments, says):
    given = [] if "--weights" in arguments else ["--weights", str(folder)]
    assert says in refusal(capsys, "i2v", "--on", "l4", *given, *arguments)


def test_a_missing_compiler_names_the_extra_and_the_quick_way(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    told = refusal(capsys, "i2v", "--on", "v5e:2x4")
    assert "pip install 'mv2-jax[tpu]', or take --quick" in told


@pytest.mark.skipif(machines.lacking("v5e:2x2") is not None, reason="libtpu is not installed")
def test_a_slice_that_there_is_not_is_refused_at_once(monkeypatch, capsys):
    monkeypatch.setattr(sources, "of_preset", None)  # which takes half a minute
    assert "no such TPU slice 'v5e:3x5'" in refusal(capsys, "i2v", "--on", "v5e:3x5")


def test_help_loads_no_jax():
    code = (
        "import sys\nfrom mv2_jax import cli\n"
        "try: cli.main(['plan', '--help'])\nexcept SystemExit: pass\n"
        "print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: mv2 plan") and done.stdout.endswith("False\n")


def test_every_program_of_a_cascade_is_planned_from_traces_alone(capsys, folder):
    steps = ["--t2i-steps", "3", "--i2v-steps", "7", "--v2v-steps", "10", "--v2v-strength", "0.4"]
    plan = planned(
        capsys, folder, "cascade", "--on", "v5e:2x4", "--quick", "--price", "9", "--between", "1",
        *steps,
    )  # fmt: skip
    runs = {f"{p['stage']} {p['program']}": p["runs"] for p in plan["programs"]}
    assert runs["t2i step"] == 3 and runs["i2v step"] == 7 and runs["v2v step"] == 4
    every = {*runs}
    for stage in ("t2i", "i2v", "v2v"):
        assert {f"{stage} {name}" for name in ("encoders", "start", "step", "decode")} <= every
    assert {"i2v encode", "v2v encode", "vfi frames between"} <= every
    assert plan["fits"] and plan["machine"]["devices"] == 8 and plan["mesh"]["context"] == 2
    assert plan["seconds"] == pytest.approx(sum(
        p["runs"] * p["roofline_seconds"] for p in plan["programs"]
    ))  # fmt: skip
    whole = set()
    for program in plan["programs"]:
        memory = program["memory"]
        held = memory["parameters"] + memory["other_weights"]
        whole.add(held)
        assert 0 < memory["freed_by_resident_stage"] < held
    assert len(whole) == 1  # all of the cascade's, whatever runs
    assert plan["price"] == pytest.approx(9 * plan["seconds"] / 3600)
    assert all(p["compiled"] is None for p in plan["programs"])
    step = next(p for p in plan["programs"] if p["stage"] == "i2v" and p["program"] == "step")
    # Clips of three frames over eight devices: some work twice.
    assert step["useful_flops"] < 8 * step["device"]["flops"] < 8 * step["device"]["padded_flops"]


def test_a_table_says_whose_each_figure_is(capsys, folder):
    words = ["plan", "t2i", "--on", "l4", "--quick", "--weights", str(folder)]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    for words in ("tiny t2i on l4: 1 x NVIDIA L4, each 121 TFLOP/s", "seconds a video:",
                  "whose estimates these are:", "no kernel reaches it",
                  "it fits as long as temporaries are at most"):  # fmt: skip
        assert words in out


def test_what_does_not_fit_is_named_with_what_would(capsys, folder, monkeypatch):
    small = dataclasses.replace(machines.GPUS["l4"], memory=40_000)
    monkeypatch.setitem(machines.KNOWN, "l4", small)
    plan = planned(capsys, folder, "i2v", "--on", "l4", "--quick", code=1)
    assert not plan["fits"]
    told = " ".join(plan["does_not_fit"])
    assert "i2v step does not fit: it needs" in told and "--resident stage" in told
    assert "--vae-tile 512" in told


@pytest.mark.parametrize("part, names", [("vae", {"encode", "decode"}), ("encoders", {"encoders"})])
def test_parts_of_a_cascade(capsys, folder, part, names):
    plan = planned(capsys, folder, part, "--on", "l4", "--quick")
    assert {p["program"] for p in plan["programs"]} == names
    assert len({p["stage"] for p in plan["programs"]}) == 3


def test_flags_of_generate_change_the_programs(capsys, folder):
    def step(*flags):
        plan = planned(capsys, folder, "i2v", "--on", "l4", "--quick", *flags)
        return next(p for p in plan["programs"] if p["program"] == "step")

    plain = step()
    assert step("--guidance-rule", "none")["useful_flops"] == plain["useful_flops"] / 2
    assert step("--controls", "2")["useful_flops"] > plain["useful_flops"]
    assert step("--frames", "5")["useful_flops"] == 2 * plain["useful_flops"]  # two windows
    assert step("--batch", "2")["useful_flops"] == 2 * plain["useful_flops"]


def test_the_best_mesh_is_found_and_said(capsys, folder):
    words = ["plan", "t2i", "--on", "v5e:1x2", "--quick", "--mesh", "auto"]
    assert cli.main([*words, "--weights", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "best: " in out and "<- best" in out and "fsdp=2" in out


def test_a_plan_compiled_for_emulated_devices(fake, capsys, folder):
    plan = planned(capsys, folder, "t2i", "--on", "l4:2", "--mesh", "fsdp=2")
    for program in plan["programs"]:
        made, memory = program["compiled"], program["memory"]
        assert made["arguments"] + made["temporaries"] + made["outputs"] > 0
        # Arguments are what the sharding table says, whatever the compiler does.
        assert made["arguments"] == pytest.approx(memory["parameters"] + memory["inputs"], abs=64)
        assert made["seconds"] is None  # a CPU's compiler tells none
    step = next(p for p in plan["programs"] if p["program"] == "step")
    assert step["compiled"]["sent"]["all-gather"] > 0
    kinds = step["compiled"]["units"]
    assert sum(kind["useful_flops"] * kind["runs"] for kind in kinds) == step["device"]["flops"]
    assert step["compiled"]["share"] > 0.5 and any(kind["compiled"] for kind in kinds)


@pytest.mark.parametrize("stage", ["t2i", pytest.param("i2v", marks=pytest.mark.slow)])
def test_a_training_step_is_planned(capsys, folder, stage):
    plan = planned(capsys, folder, stage, "--on", "v5e:1x2", "--quick", "--train", "--batch", "2")
    (program,) = plan["programs"]
    infer = planned(capsys, folder, stage, "--on", "l4", "--quick", "--guidance-rule", "none")
    step = next(p for p in infer["programs"] if p["program"] == "step")
    # Forwards, backwards to the trained weights, and (clips) forwards again; two samples.
    assert 3 * step["useful_flops"] < program["useful_flops"] < 10 * step["useful_flops"]
    assert program["memory"]["parameters"] > 4 * 1000


@pytest.mark.slow
def test_the_presets_are_the_papers():
    paper = sources.of_preset("paper")
    assert {"t2i_unet", "t2i_vae", "t2i_text_encoder_2", "spatial", "control"} <= {*paper.shapes}
    assert paper.bundle.stages["v2v"].size == (1048, 1048)
    count = sum(leaf.size for leaf in jax.tree.leaves(paper.shapes["spatial"]))
    assert count == 859_520_964  # SD1.5's UNet
