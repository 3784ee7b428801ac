"""What goes wrong with files: damaged checkpoints, saves that are cut, disks that are full."""

import json
import resource
import shutil

import jax
import numpy as np
import pytest

from mv2_jax.errors import InputError
from mv2_jax.train import checkpoint, loop

from .regression import config, task


def longer(steps):
    return config(checkpoint_minutes=1e-9, steps=steps, log_every=50)


STEPS = longer(6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of six steps with a checkpoint at each, of which the newest two are kept."""
    folder = tmp_path_factory.mktemp("whole")
    return loop.run(task(), STEPS, folder).state, folder


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncated(folder):
    path = largest(folder / "state")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(folder):
    path = largest(folder / "state")
    path.write_bytes(bytes(path.stat().st_size))


def flipped(folder):
    """64 bits of the parameters, which Orbax alone does not notice."""
    path = largest(folder / "state")
    data = bytearray(path.read_bytes())
    for place in np.linspace(0, len(data) - 1, 64).astype(int):
        data[place] ^= 1
    path.write_bytes(data)


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def noted(folder):
    (path,) = (
        p for p in (folder / "notes").rglob("*") if p.is_file() and b"elapsed" in p.read_bytes()
    )
    path.write_text('{"elapsed": ')


def unsealed(folder):
    """As an older version left it, and truncated."""
    (folder / checkpoint.DIGESTS).unlink()
    truncated(folder)


@pytest.mark.parametrize("damage", [truncated, zeroed, flipped, emptied, noted, unsealed])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(damage, whole, tmp_path, capsys):
    state, folder = whole
    shutil.copytree(folder, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["5", "6"]
    damage(checkpoints / "6")
    again = loop.run(task(), STEPS, tmp_path / "run")
    said = capsys.readouterr().out
    assert "the checkpoint of step 6 is damaged" in said and "resumed at step 5" in said
    for one, other in zip(jax.tree.leaves(again.state), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["5", "6"]


def test_where_all_are_damaged_it_says_so(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "run")
    for step in "56":
        truncated(tmp_path / "run" / "checkpoints" / step)
    with pytest.raises(InputError, match=r"every checkpoint in .* is damaged; .* --fresh"):
        loop.run(task(), STEPS, tmp_path / "run")


def test_what_a_killed_save_left_is_cleared(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(checkpoints / "6", checkpoints / "7.orbax-checkpoint-tmp")
    loop.run(task(), STEPS, tmp_path / "run")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["5", "6"]


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(whole, tmp_path, monkeypatch):
    """A limit on files' sizes stands for the disk's: both fail as a write does."""
    shutil.copytree(whole[1], tmp_path / "run")
    sealed = tmp_path / "run" / "checkpoints" / "6" / checkpoint.DIGESTS
    before, save = resource.getrlimit(resource.RLIMIT_FSIZE), loop.Run.save

    def full(run):
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
        try:
            save(run)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(loop.Run, "save", full)
    with pytest.raises(InputError, match=r"cannot be written .* step 6 is the last good") as error:
        loop.run(task(), longer(8), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert any(name.startswith("state/") for name in json.loads(sealed.read_text()))
    monkeypatch.setattr(loop.Run, "save", save)
    assert loop.run(task(), longer(8), tmp_path / "run").finished
