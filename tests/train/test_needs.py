"""What would stop training, or a study after it, is told before anything runs."""

import importlib.util

import pytest

from mv2_jax import cli
from mv2_jax.infer import study_arms
from mv2_jax.train import cli as trainer
from mv2_jax.train import needs

FIND = importlib.util.find_spec


@pytest.fixture
def untrained(monkeypatch):
    """Anything that trains fails the test."""

    def refuse(*_args, **_more):
        raise AssertionError("training has begun")

    monkeypatch.setattr(study_arms, "train", refuse)
    monkeypatch.setattr(trainer, "main", refuse)


@pytest.mark.parametrize("missing", ["matplotlib", "optax", "orbax"])
def test_without_the_extra_nothing_begins(missing, untrained, monkeypatch, capsys):
    def find(name, package=None):
        if name.partition(".")[0] != missing:
            return FIND(name, package)
        if "." in name:  # as Python does where the parent is missing
            raise ModuleNotFoundError(f"No module named {missing!r}")
        return None

    monkeypatch.setattr(importlib.util, "find_spec", find)
    package = next(name for name in needs.MODULES if name.startswith(missing))
    for command in (["train", "toybox/vae"], ["study", "training"]):
        assert cli.main(command) == 2
        said = capsys.readouterr().err
        assert f"needs {package}: pip install 'mv2-jax[train]'" in said


def test_a_study_looks_at_its_judge_and_folder_first(untrained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    judge = ["--judge", str(tmp_path / "nowhere")]
    for which, more, said in (
        ("preference", judge, "no judge at"),
        ("training", judge, "no judge at"),
        ("training", ["--judge", str(tmp_path / "empty")], "holds no judge"),
        ("training", ["-o", str(tmp_path / "file")], "nothing can be written there"),
        ("training", ["-o", str(tmp_path / "file" / "below")], "nothing can be written there"),
    ):
        assert cli.main(["study", which, *more]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(AssertionError, match="training has begun"):
        cli.main(["study", "training", "-o", str(tmp_path / "made")])
    assert (tmp_path / "made").is_dir()
