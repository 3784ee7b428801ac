import json
import sys
import types

import jax
import numpy as np
import pytest

from mv2_jax import config, params
from mv2_jax.config import ScheduleConfig
from mv2_jax.errors import InputError
from mv2_jax.train import cli, recipe

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

    module = types.ModuleType("mv2_jax.train.tasks.regression")
    module.make = make
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(recipe, "known_tasks", lambda: ["regression", "vae"])
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
        (None, ["precision=fp8"], None, "use one of auto, fp32, bf16"),
        (None, ["task=regresion"], None, "did you mean 'regression'"),
        (None, [], "ones", "did you mean 'one'"),
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
            assert cfg.phases[phase].task in recipe.known_tasks()
