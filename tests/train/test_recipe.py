import json
import os
import shutil
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from mv2_jax import config, params
from mv2_jax.config import ScheduleConfig
from mv2_jax.errors import InputError
from mv2_jax.infer import study_arms
from mv2_jax.train import cli, loop, recipe
from mv2_jax.train import phase as phases
from mv2_jax.train.task import Component

from .regression import task

RECIPE = """
from mv2_jax.train.phase import phase, recipe

def get_config():
    def small(lr):
        optim = dict(lr=lr, warmup=0)
        return phase("regression", steps=3, batch=8, log_every=1, optim=optim)
    return recipe(one=small(0.3), two=small(0.001))
"""


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """A recipe file of two phases; the second begins from the first's weights."""

    def make(cfg, begin, folder):
        if "spatial" not in begin:
            return task()
        return task(init=lambda key: jax.tree.map(np.float32, begin["spatial"].params))

    monkeypatch.setitem(recipe.TASKS, "regression", make)
    path = tmp_path / "chain.py"
    path.write_text(RECIPE)
    return str(path)


def test_phases_follow_one_another_and_leave_their_weights(chain, tmp_path, capsys):
    assert cli.main(chain, [], out=str(tmp_path / "runs")) == 0
    said = capsys.readouterr().out
    assert "phase one finished" in said and "phase two finished" in said and "TFLOP" in said
    weights = tmp_path / "runs" / "chain" / "two" / "weights"
    index = json.loads((weights / recipe.INDEX).read_text())
    assert index["phase"] == "chain/two" and index["steps"] == 3 and index["tflop"] >= 0
    assert config.from_dict(index["components"]["spatial"]["config"]) == ScheduleConfig()
    tree = params.load(weights / "spatial.safetensors")
    assert {leaf.dtype for leaf in params.flatten(tree).values()} == {np.dtype(np.float16)}
    first = params.load(tmp_path / "runs" / "chain" / "one" / "weights" / "spatial.safetensors")
    far = np.abs(tree["layer"]["kernel"].astype(float) - first["layer"]["kernel"]).max()
    assert 0 < far < 0.01  # went on from there
    began = index["began"]["spatial"]
    assert began == params.digest(first)

    assert cli.main(chain, [], out=str(tmp_path / "runs")) == 0
    assert "phase two kept" in capsys.readouterr().out
    cli.main(chain, ["steps=5"], phase="two", out=str(tmp_path / "runs"), resume=False)
    assert json.loads((weights / recipe.INDEX).read_text())["steps"] == 5


def test_a_phase_whose_predecessor_is_missing_says_what_to_run(chain, tmp_path):
    with pytest.raises(InputError, match=r"follows 'one'.*--phase one"):
        cli.main(chain, [], phase="two", out=str(tmp_path / "runs"))
    with pytest.raises(InputError, match=r"begins from 'toybox/vae'.*mv2 train toybox/vae"):
        cli.main(chain, ["begin={'vae': 'toybox/vae'}"], out=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "name, settings, phase, says",
    [
        ("toybox/vea", [], None, "did you mean 'toybox/vae'"),
        ("nowhere.py", [], None, "does not exist"),
        (None, ["optim.lrr=1"], None, "did you mean 'optim.lr'"),
        (None, ["optim.name=adamv"], None, "did you mean 'adamw'"),
        (None, ["precision=fp8"], None, "phase one: unknown precision 'fp8'"),
        (None, ["task=regresion"], None, "did you mean 'regression'"),
        (None, [], "ones", "did you mean 'one'"),
        (None, ["log_every=0"], None, "phase one: log_every is 0"),
        (None, ["two.optim.accumulate=3"], None, r"phase two: batch.*optim\.accumulate"),
        (None, ["seed=-1"], None, "seed is -1; it goes from 0"),
        ("toybox/t2i", ["data.count=1000"], None, "1000 samples do not divide into shards of 512"),
    ],
)
def test_bad_words_write_nothing(chain, tmp_path, name, settings, phase, says):
    with pytest.raises(InputError, match=says):
        cli.main(name or chain, settings, phase=phase, out=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_every_shipped_recipe_loads():
    names = recipe.known_recipes()
    assert "toybox/vae" in names
    for name in names:
        short, cfg = recipe.load(name)
        assert short == name
        for phase in cfg.order:
            assert cfg.phases[phase].name == f"{name}/{phase}"
            assert cfg.phases[phase].task in recipe.TASKS
            phases.check(cfg.phases[phase])


def runs_of(chain, tmp_path, *settings, **given):
    return cli.main(chain, list(settings), out=str(tmp_path / "runs"), **given)


def test_a_finished_phase_is_kept_only_as_it_was_asked_for(chain, tmp_path, capsys):
    runs_of(chain, tmp_path)
    with pytest.raises(InputError, match=r"'one' .* with steps 3, not 5: add --phase one --fresh"):
        runs_of(chain, tmp_path, "steps=5")
    with pytest.raises(InputError, match=r"'two' .* with optim\.lr 0\.001, not 0\.2"):
        runs_of(chain, tmp_path, "two.optim.lr=0.2")
    capsys.readouterr()
    runs_of(chain, tmp_path, "log_every=2", "checkpoint_minutes=0", "mesh.data=1")
    assert capsys.readouterr().out.count("kept") == 2
    # Trained again, the first phase leaves weights that the second did not begin from.
    runs_of(chain, tmp_path, "seed=1", phase="one", resume=False)
    with pytest.raises(InputError, match=r"'two' .* began from other weights of 'spatial'"):
        runs_of(chain, tmp_path, "one.seed=1")
    shutil.rmtree(tmp_path / "runs" / "chain" / "one" / "weights")
    runs_of(chain, tmp_path, phase="two")  # what it began from is not there to be compared
    assert "phase two kept" in capsys.readouterr().out
    # An older version left no settings.
    (tmp_path / "runs" / "chain" / "two" / "config.json").unlink()
    runs_of(chain, tmp_path, "steps=7", phase="two")
    assert "phase two kept" in capsys.readouterr().out


def test_half_a_phase_goes_on_only_over_what_it_began_with(chain, tmp_path, capsys):
    runs_of(chain, tmp_path)
    folder = tmp_path / "runs" / "chain" / "two"
    shutil.rmtree(folder / "weights")  # as if it had been cut: its checkpoint is there
    with pytest.raises(InputError, match=r"'two' .* with seed 0, not 4"):
        runs_of(chain, tmp_path, "two.seed=4")
    runs_of(chain, tmp_path, "two.steps=5", "two.optim.lr=0.01", "two.max_minutes=9")
    assert "resumed at step 3" in capsys.readouterr().out
    shutil.rmtree(folder / "weights")
    runs_of(chain, tmp_path, "seed=1", phase="one", resume=False)
    with pytest.raises(InputError, match=r"'two' .* began from other weights of 'spatial'"):
        runs_of(chain, tmp_path, "one.seed=1", "two.steps=5", "two.optim.lr=0.01")
    # A study trains such a phase from nothing, and one of other steps too.
    short, cfg = recipe.load(chain)
    for steps in (5, 4):
        cfg.phases.two.steps = steps
        for state in ("finished", "kept"):
            done = recipe.run_phase(tmp_path / "runs", short, cfg, "two", True, afresh=True)
            assert done.state == state
        assert json.loads((folder / "weights" / recipe.INDEX).read_text())["steps"] == steps
    assert "resumed" not in capsys.readouterr().out


ARMS = """
from mv2_jax.train.phase import arms, phase

def get_config():
    begin = {"spatial": "in its place, the studied cascade"}
    return arms(one=phase("regression", steps=4, batch=8, model={}, begin=begin))
"""


def test_a_study_reports_no_arms_of_other_steps_or_other_weights(chain, tmp_path, monkeypatch):
    runs_of(chain, tmp_path)
    path = Path(chain).with_name("study.py")
    path.write_text(ARMS)
    monkeypatch.setitem(study_arms.RECIPES, "training", str(path))
    index = tmp_path / "runs" / "study" / "one" / "weights" / recipe.INDEX
    seen = []
    for phase, steps in (("one", 2), ("one", 2), ("one", 3), ("two", 3)):
        weights = types.SimpleNamespace(folder=tmp_path / "runs" / "chain" / phase / "weights")
        study_arms.train("training", weights, tmp_path / "runs", steps)
        seen.append(json.loads(index.read_text()))
    assert [kept["steps"] for kept in seen] == [2, 2, 3, 3]
    assert seen[0] == seen[1] and seen[2]["began"] != seen[3]["began"]


def test_a_decoder_trained_on_since_changes_no_latents_but_those_of_an_autoencoder(tmp_path):
    def held(encoder, decoder):
        leaf = np.ones(2, np.float32)
        tree = {"encoder": {"w": encoder * leaf}, "quant_conv": {"w": leaf}}
        return {"vae": Component({**tree, "decoder": {"w": decoder * leaf}}, None)}

    cfg = phases.phase("t2i", name="chain/one")
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    recipe._note(tmp_path, phases.recipe(one=cfg), cfg, held(1, 1))
    assert recipe.changed(tmp_path, cfg, held(1, 1), strict=True) == ""
    assert recipe.changed(tmp_path, cfg, held(1, 2)) == ""
    assert "'vae'" in recipe.changed(tmp_path, cfg, held(1, 2), strict=True)
    assert "'vae/encoder'" in recipe.changed(tmp_path, cfg, held(2, 1))


def test_settings_that_are_off_or_at_their_defaults_may_be_unknown():
    old = {"data": {"count": 4}, "lora": {"rank": 0}, "train": ["a"]}
    assert phases.difference(old, {**old, "data": {"count": 4, "motions": {}}}) == ""
    new = {"data": {"count": 4, "motions": {"spinning": 5.0}}, "train": ["a"]}
    assert phases.difference(old, new) == "data.motions.spinning unset, not 5.0"
    assert phases.difference(new, {"train": ["b"]}, ("data",)) == "train ['a'], not ['b']"


def leave(root, *names):
    """Weights folders as finished phases leave them, the first the newest, as a copy may be."""
    for age, name in enumerate(names):
        path = root / name / "weights" / recipe.INDEX
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        os.utime(path, (10**9 - age, 10**9 - age))


def test_what_begins_from_a_recipe_begins_from_its_last_phase(tmp_path, chain):
    last = recipe.load("toybox/t2i")[1].order[-1]
    leave(tmp_path, "toybox/t2i/t2i", "toybox/t2i/longer")
    says = rf"whose last phase '{last}' has not .*`mv2 train toybox/t2i`.*toybox/t2i/longer"
    with pytest.raises(InputError, match=says):
        recipe.folder_of(tmp_path, "toybox/t2i")
    leave(tmp_path, f"toybox/t2i/{last}")
    assert recipe.folder_of(tmp_path, "toybox/t2i") == tmp_path / "toybox/t2i" / last / "weights"
    named = tmp_path / "toybox/t2i/longer/weights"
    assert recipe.folder_of(tmp_path, "toybox/t2i/longer") == named
    with pytest.raises(InputError, match="`mv2 train toybox/t2i --phase longest` first"):
        recipe.folder_of(tmp_path, "toybox/t2i/longest")
    # Arms have no last one: the only one there is, or a name.
    leave(tmp_path, "toybox/dpo/clips")
    assert recipe.folder_of(tmp_path, "toybox/dpo").parts[-2] == "clips"
    leave(tmp_path, "toybox/dpo/pictures")
    with pytest.raises(InputError, match="name one, toybox/dpo/clips or toybox/dpo/pictures"):
        recipe.folder_of(tmp_path, "toybox/dpo")
    # A recipe file's order is known from its run.
    runs_of(chain, tmp_path, phase="one")
    with pytest.raises(InputError, match=r"last phase 'two' .*`mv2 train chain\.py`"):
        recipe.folder_of(tmp_path / "runs", "chain")
    runs_of(chain, tmp_path)
    assert recipe.folder_of(tmp_path / "runs", "chain").parts[-2] == "two"


def test_what_the_loop_advises_comes_without_a_traceback(chain, tmp_path, monkeypatch):
    def fail(*args, **more):
        raise FloatingPointError("diverged")

    monkeypatch.setattr(loop, "run", fail)
    with pytest.raises(InputError, match="diverged"):
        runs_of(chain, tmp_path)
    monkeypatch.setattr(loop, "run", lambda *args, **more: int("a bug"))
    with pytest.raises(ValueError, match="a bug") as found:
        runs_of(chain, tmp_path)
    assert not isinstance(found.value, InputError)


def test_phases_of_a_chain_draw_each_its_own_and_arms_alike(chain, tmp_path):
    cfg = recipe.load(chain)[1]
    seeds = [phases.seed_of(cfg.phases[name]) for name in cfg.order]
    assert seeds == [1504518821, 839593522]  # in every process and on every machine
    cfg.phases.one.seed = 2**31 - 1
    assert 0 <= phases.seed_of(cfg.phases.one) < 2**31
    path = Path(chain).with_name("paired.py")
    path.write_text(
        RECIPE.replace("recipe(one", "arms(one").replace("phase, recipe", "arms, phase")
    )
    arms = recipe.load(str(path))[1]
    assert [phases.seed_of(arms.phases[name]) for name in arms.order] == [0, 0]
    firsts = []
    for made in (cfg, arms):
        made.phases.one.seed = 0
        for name in made.order:
            phase = made.phases[name]
            task = recipe.make_task(phase, {}, tmp_path / name)
            firsts.append(np.asarray(next(task.batches(phases.seed_of(phase), 0))["x"]))
    assert not np.array_equal(firsts[0], firsts[1]) and np.array_equal(firsts[2], firsts[3])


def test_threads_are_no_difference():
    old, new = ({"data": {"threads": n, "fps": 8.0}, "seed": 0} for n in (4, 8))
    assert not phases.difference(old, new, phases.RUNNING)
    assert phases.difference({"data": {"fps": 4.0}}, new, phases.RUNNING) == "data.fps 4.0, not 8.0"
