import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mv2_jax import cli
from mv2_jax.config import JudgeConfig
from mv2_jax.infer import generate, media, study, study_arms, study_report
from mv2_jax.infer.generate import Made
from mv2_jax.infer.mechanisms import FULL, Variant
from mv2_jax.toybox import evaluate

VARIANTS = (
    FULL,
    Variant("worse", "prior", (("i2v", "noise_prior", 0.0),)),
    Variant("same", "vfi", skip=frozenset({"vfi"})),
)


def test_table_has_paired_differences_and_marks_those_that_are_real():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 10, 50)
    right = np.r_[np.ones(40), np.zeros(10)]
    values = {
        "full": {"thing": right, "jerk": base, "kept colour": np.full(50, np.nan)},
        "worse": {
            "thing": np.r_[np.zeros(20), right[20:]],
            "jerk": base + 1 + rng.normal(0, 0.1, 50),
            "kept colour": np.full(50, np.nan),
        },
        "same": {"thing": right, "jerk": base + rng.normal(0, 0.1, 50), "kept colour": base},
    }
    names = list(values)
    compared = study_report.compare(values, names)
    assert compared["worse"]["thing"]["difference"].mean == pytest.approx(-0.4)
    assert compared["worse"]["thing"]["p"] == pytest.approx(2 / 2**20)
    assert compared["worse"]["kept colour"]["difference"] is None
    lines = study_report.markdown(compared, names, 50).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines[2:5]}
    assert cells["full"][0] == "80" and cells["worse"][0].startswith("**-40 (")
    assert cells["worse"][1].startswith("**+1.0") and "**" not in cells["same"][1]
    assert cells["worse"][2].strip(" |") == "-"
    few = {name: {k: v[:3] for k, v in found.items()} for name, found in values.items()}
    text = study_report.markdown(study_report.compare(few, names), names, 3)
    assert "-100 (3 pairs)" in text and "**" not in text.split("**Bold**")[0]


@pytest.fixture
def made(monkeypatch):
    """Batches that were made, in place of networks and a judge."""
    calls = []

    class Bench:
        def __init__(self, cascade, prompts, seeds, *rest):
            self.seeds = seeds

        def make(self, variant):
            calls.append((variant.name, tuple(self.seeds)))
            clip = np.zeros((len(self.seeds), 7, 16, 16, 3), np.uint8)
            return Made(clip[:, 0], clip, clip, clip + (20 if variant.name == "worse" else 0))

    def measured(made, words, keep, jury):
        assert words.shape[1] == 4
        right = float(made.frames.max() == 0)
        return {"thing": np.full(keep, right), "jerk": np.full(keep, np.nan)}

    monkeypatch.setattr("mv2_jax.infer.mechanisms.Bench", Bench)
    monkeypatch.setattr(study, "measured", measured)
    monkeypatch.setattr(
        generate, "load", lambda *_: (SimpleNamespace(idle=lambda stage, **_: {}), {})
    )
    monkeypatch.setattr(study.settings, "resolve", lambda *args: {"vfi": {"fps": 8}})

    def load(path="ships"):
        weights = np.float32([len(Path(path).read_text()) if Path(path).is_file() else 0])
        return evaluate.Jury({"w": weights}, JudgeConfig())

    monkeypatch.setattr(evaluate, "load", load)
    return calls


def test_a_study_writes_its_files_and_goes_on_where_it_was_cut(tmp_path, made):
    bundle = SimpleNamespace(digest="x", folder=Path("x"))
    values = study.run(bundle, VARIANTS, tmp_path, count=5, batch=2)
    assert len(made) == 9 and made[0] == (FULL.name, (0, 1)) and made[-1] == ("same", (4, 4))
    assert values["worse"]["thing"].tolist() == [0.0] * 5
    assert np.isnan(values["same"]["jerk"]).all() and len(values["same"]["jerk"]) == 5
    report = json.loads((tmp_path / "study.json").read_text())
    cell = report["variants"]["worse"]["thing"]
    assert cell["difference"]["mean"] == -1.0 and cell["p"] == 2 / 2**5
    sheet = media.read_image(tmp_path / "study.png")
    assert sheet.shape == (24 + 3 * 10, 210 + 6 * 10, 3)
    for path in (tmp_path / "parts").glob("00002-*.json"):
        path.unlink()
    again = study.run(bundle, VARIANTS, tmp_path, count=5, batch=2)
    assert [call[1] for call in made[9:]] == [(2, 3)] * 3
    assert np.array_equal(again["worse"]["thing"], values["worse"]["thing"])
    other = SimpleNamespace(digest="other weights", folder=Path("x"))
    study.run(other, VARIANTS, tmp_path, count=2, batch=2)
    assert len(made) == 15
    more = (*VARIANTS, Variant("more", "v2v", (("v2v", "strength", 0.2),)))
    assert len(study.run(bundle, more, tmp_path, count=5, batch=2)) == 4
    assert made[15:] == [("more", (0, 1)), ("more", (2, 3)), ("more", (4, 4))]


def test_parts_are_kept_by_what_a_judge_is_not_by_its_name(tmp_path, made):
    judge, bundle = tmp_path / "judge.safetensors", SimpleNamespace(digest="x", folder=Path("x"))
    for text, name, batches in (("a", judge, 1), ("a", tmp_path / "moved", 1), ("bc", judge, 2)):
        name.write_text(text)
        study.run(bundle, VARIANTS[:1], tmp_path / "out", count=2, batch=2, judge=str(name))
        assert len(made) == batches


def test_flags_that_make_no_sense_are_told(capsys):
    for arguments, said in (
        (["inference", "--only", "vfy"], "did you mean 'vfi'"),
        (["training", "--only", "vfi"], "--only goes with"),
        (["preference"], "not to be reported by the judge that ranked"),
        (["inference", "--prompts", "1"], "--prompts is at least 2"),
        (["inference", "--seed", "-1"], "--seed is -1; it goes from 0 to 4294967256"),
        (["training", "--steps", "0"], "--steps is 0; it is at least 1"),
    ):
        assert cli.main(["study", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_every_arm_of_a_recipe_is_studied():
    from mv2_jax.train import recipe

    for which, short in study_arms.RECIPES.items():
        arms = set(recipe.load(short)[1].order)
        assert {v.weights for v in study_arms.variants(which)} - {""} == arms
