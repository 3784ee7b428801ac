"""Samplers, lengths and sizes from the command line to the stages, and through the sidecar."""

import dataclasses
import json

import pytest

from mv2_jax import bundle, cli
from mv2_jax.configs.few_steps import FEW_STEPS
from mv2_jax.diffusion import process, samplers
from mv2_jax.errors import InputError
from mv2_jax.infer import choices, generate, ready

PROMPT = "a red ball bouncing over the meadow"


@pytest.fixture
def mv2(tiny_weights, fake_cascade, tmp_path, monkeypatch):
    """Runs `mv2 generate` in an empty folder; gives (exit code, what the stages were)."""
    monkeypatch.chdir(tmp_path)
    load, seen = generate.load, []

    def watched(weights, *_):
        seen.append(weights)
        return load(weights)

    monkeypatch.setattr(generate, "load", watched)

    def run(*arguments, weights=("--weights", str(tiny_weights))):
        code = cli.main(["generate", *weights, *map(str, arguments)])
        return code, seen[-1].stages if seen else None

    return run


def test_the_names_are_the_samplers():
    for name in samplers.SAMPLERS:
        assert isinstance(samplers.make(name), samplers.Sampler)
    assert all(program.sampler in samplers.SAMPLERS for program in FEW_STEPS.values())


def test_choices_reach_their_stages_and_the_sidecar(mv2, tmp_path, capsys):
    flags = ("--i2v-sampler", "unipc", "--t2i-sampler", "euler_a", "--frames", 6, "--overlap", 1)
    code, stages = mv2(PROMPT, *flags)
    assert code == 0
    assert [stages[s].sampler for s in ("t2i", "i2v", "v2v")] == ["euler_a", "unipc", "ddim"]
    assert stages["i2v"].frames == stages["v2v"].frames == 6 and stages["v2v"].overlap == 1
    side = json.loads((tmp_path / "out.json").read_text())
    assert side["choices"]["t2i"] == {"sampler": "euler_a"}
    assert side["result"]["frames"] == (6 - 1) * 3 + 1
    capsys.readouterr()
    assert mv2("--from", "out.json", weights=())[0] == 0
    assert "the frames are the same as before" in capsys.readouterr().out
    code, stages = mv2("--from", "out.json", "--i2v-sampler", "ddim", weights=())
    assert code == 0 and stages["i2v"].sampler == "ddim" and stages["t2i"].sampler == "euler_a"


def test_windows_reach_their_stages_and_a_loop_closes(mv2, tmp_path, capsys):
    flags = ("--windows", "closed", "--frames", 6, "--window", 4, "--overlap", 2, "--fuse", "flat")
    code, stages = mv2(PROMPT, *flags)
    assert code == 0, capsys.readouterr().err
    for stage in ("i2v", "v2v"):
        found = stages[stage]
        assert (found.context, found.windows, found.blend) == ("closed", (4, 2), "flat")
    side = json.loads((tmp_path / "out.json").read_text())
    assert side["result"]["frames"] == 6 * 3  # frames between the last and the first too
    capsys.readouterr()
    assert mv2("--from", "out.json", weights=())[0] == 0
    assert "the frames are the same as before" in capsys.readouterr().out
    _, stages = mv2(PROMPT, "-o", "b.mp4", "--windows", "uniform", "--frames", 40)
    assert stages["i2v"].windows == (4, 1) and stages["i2v"].blend == "pyramid"
    assert mv2(PROMPT, "-o", "c.mp4", "--window", 3, "--overlap", 3)[0] == 2
    assert "--overlap 3: motion windows are 3 frames long" in capsys.readouterr().err


def test_few_steps_bring_their_numbers_and_the_user_has_the_last_word(mv2, tmp_path):
    def settings(name="out"):
        return json.loads((tmp_path / f"{name}.json").read_text())["settings"]["i2v"]

    code, stages = mv2(PROMPT, "--i2v-guidance", 5)
    assert code == 0 and (settings()["steps"], settings()["guidance"]) == (3, 5)
    code, stages = mv2("--from", "out.json", "--few-steps", "lightning", weights=())
    assert code == 0
    assert (stages["i2v"].sampler, stages["i2v"].schedule.spacing) == ("euler", "trailing")
    assert stages["i2v"].schedule.kind == "linear" and stages["t2i"].sampler == "ddim"
    again = settings("out-again")
    assert (again["steps"], again["guidance"]) == (4, 1)
    flags = ("--few-steps", "lcm", "--i2v-steps", 8, "--i2v-guidance", 1.5)
    code, stages = mv2(PROMPT, *flags, "-o", "x.mp4")
    assert code == 0 and stages["i2v"].sampler == "lcm"
    assert (settings("x")["steps"], settings("x")["guidance"]) == (8, 1.5)


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--i2v-sampler", "eulr"), "--i2v-sampler: unknown sampler 'eulr'"),
        (("--i2v-sampler", "eulr"), "did you mean 'euler'?"),
        (("--few-steps", "lightening"), "did you mean 'lightning'?"),
        (("--frames", "0"), "--frames takes a whole number from 1 to 1024, not 0"),
        (("--frames", "many"), "--frames takes a whole number from 1 to 1024, not many"),
        (("--frames", "9", "--overlap", "9"), "--overlap 9: motion windows are 9 frames long"),
        (("--i2v-sampler", "lcm", "--i2v-steps", "60"), "--i2v-steps 60 with lcm: cannot sample"),
        (("--t2i-sampler", "unipc", "--t2i-steps", "1000"), "this sampler takes 1..999"),
        (("--spacing", "trialing"), "did you mean 'trailing'"),
        (("--steps-offset", "999", "--spacing", "leading"), "past the last one, 999"),
        (("--preset", "paper"), "--preset paper is for weights of SD1.5's size"),
        (("--i2v-smapler", "ddim"), "did you mean '--i2v-sampler'?"),
    ],
)
def test_wrong_choices_get_one_line(mv2, capsys, flags, message):
    assert mv2(PROMPT, *flags)[0] == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_spacing_and_offset_reach_every_schedule(mv2):
    _, plain = mv2(PROMPT, "-o", "plain.mp4")
    code, stages = mv2(PROMPT, "--spacing", "leading", "--steps-offset", "3", "-o", "a.mp4")
    assert code == 0
    for name in ("t2i", "i2v", "v2v"):
        expected = dataclasses.replace(plain[name].schedule, spacing="leading", steps_offset=3)
        assert stages[name].schedule == expected != plain[name].schedule
    code, again = mv2("--from", "a.json", "--spacing", "trailing", "-o", "b.mp4")
    assert code == 0 and again["v2v"].schedule.spacing == "trailing"
    assert again["v2v"].schedule.steps_offset == 3


def test_spacing_is_chosen_over_a_few_steps_program(tiny_weights):
    made = choices.apply(
        bundle.read(tiny_weights), {"i2v": {"few_steps": "lightning", "spacing": "linspace"}}
    )
    assert made.stages["i2v"].schedule.spacing == "linspace"
    assert made.stages["i2v"].schedule.kind == "linear"


def test_choices_of_skipped_stages_are_idle():
    chosen = {"t2i": {"sampler": "lcm", "clip_skip": 1}, "i2v": {"clip_skip": 1}, "all": {}}
    assert choices.idle(chosen, "t2i") == []
    assert choices.idle(chosen, "i2v") == ["--t2i-sampler"]


def test_more_layers_than_there_are_cannot_be_left_out(tiny_weights):
    weights = bundle.read(tiny_weights)
    text = dataclasses.replace(
        weights.components["vae"], config=dataclasses.make_dataclass("Text", ["layers"])(2)
    )
    weights = dataclasses.replace(weights, components={**weights.components, "text_encoder": text})
    made = choices.apply(weights, {"t2i": {"clip_skip": 1}})
    assert [made.stages[stage].clip_skip for stage in ("t2i", "i2v")] == [1, 0]
    with pytest.raises(InputError, match="--clip-skip 2: these weights' text encoder has 2 layers"):
        choices.apply(weights, {"t2i": {"clip_skip": 2}})


def test_a_folder_with_an_unknown_sampler_is_refused(tiny_weights):
    weights = bundle.read(tiny_weights)
    stage = dataclasses.replace(weights.stages["i2v"], sampler="dpmp_2m")
    weights = dataclasses.replace(weights, stages={**weights.stages, "i2v": stage})
    with pytest.raises(InputError, match=r"i2v: unknown sampler 'dpmp_2m' .*did you mean 'dpm"):
        choices.apply(weights, {})


def test_a_sampler_of_ones_own_is_a_flag(mv2, tmp_path, capsys, monkeypatch):
    (tmp_path / "own_steps.py").write_text(
        "from mv2_jax.diffusion.solvers import ddim\nnot_one = 3"
    )
    assert mv2(PROMPT, "--t2i-sampler", "own_steps:ddim")[0] == 2
    assert "it lies in this folder: set PYTHONPATH=." in capsys.readouterr().err
    monkeypatch.syspath_prepend(tmp_path)
    code, stages = mv2(PROMPT, "--t2i-sampler", "own_steps:ddim")
    assert code == 0 and stages["t2i"].sampler == "own_steps:ddim"
    side = json.loads((tmp_path / "out.json").read_text())
    assert side["choices"]["t2i"] == {"sampler": "own_steps:ddim"}
    assert mv2("--from", "out.json", weights=())[0] == 0
    for name, said in (
        ("own_steps:dim", "own_steps has no 'dim'; did you mean 'ddim'?"),
        ("own_steps:not_one", "sampler 'own_steps:not_one' is an int, not a function"),
        ("dim", "--t2i-sampler: unknown sampler 'dim' (known: ddim, "),
    ):
        capsys.readouterr()
        assert mv2(PROMPT, "--t2i-sampler", name)[0] == 2
        told = capsys.readouterr().err
        assert said in told and len(told.splitlines()) == 1


def test_what_only_a_discrete_schedule_has_is_refused_over_others(tiny_weights):
    weights = bundle.read(tiny_weights)
    stages = {
        name: dataclasses.replace(stage, schedule=process.Flow(shift=3.0))
        for name, stage in weights.stages.items()
    }
    weights = dataclasses.replace(weights, stages=stages)
    for chosen, said in (
        ({"t2i": {"spacing": "leading"}}, "--spacing: the process of t2i is Flow, which has no"),
        ({"i2v": {"few_steps": "lcm"}}, "of 'lcm' need a discrete schedule; .* is Flow"),
    ):
        with pytest.raises(InputError, match=said):
            choices.apply(weights, chosen)
    made = choices.apply(weights, {"t2i": {"sampler": "lcm"}})
    with pytest.raises(InputError, match=r"over discrete schedules alone; over Flow take sampler"):
        ready.check_steps(made, {"t2i": {"steps": 4}, "i2v": {"steps": 4}, "v2v": {"steps": 4}})


def test_what_a_sidecar_cannot_choose_is_named():
    assert choices.checked({"i2v": {"frames": 4}}, "x.json") == {"i2v": {"frames": 4}}
    with pytest.raises(InputError, match="i2v has no choice 'samplr'; did you mean 'sampler'"):
        choices.checked({"i2v": {"samplr": "ddim"}}, "x.json")
