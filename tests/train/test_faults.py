"""What goes wrong with files: damaged checkpoints, saves that are cut, disks that are full."""

import json
import math
import os
import resource
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mv2_jax import sharding
from mv2_jax.errors import InputError
from mv2_jax.train import checkpoint, loop, processes

from .regression import batches, config, task


def longer(steps, **settings):
    often = {"checkpoint_minutes": 1e-9, "log_every": 50, "keep_best": 0}
    return config(steps=steps, **{**often, **settings})


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


def renumbered(folder):
    """One digit of the notes."""
    (path,) = (
        p for p in (folder / "notes").rglob("*") if p.is_file() and b"elapsed" in p.read_bytes()
    )
    held = json.loads(path.read_text())
    held["elapsed"] += 1.0
    path.write_text(json.dumps(held))


@pytest.mark.parametrize("damage", [truncated, zeroed, flipped, emptied, noted, renumbered])
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


def test_what_is_passed_over_stays_until_the_phase_is_done(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    truncated(checkpoints / "6")
    run = started(tmp_path / "run", STEPS)
    run.checkpoints.close()
    assert run.step == 5
    assert sorted(path.name for path in checkpoints.iterdir()) == ["5", checkpoint.DAMAGED]
    assert largest(checkpoints / checkpoint.DAMAGED / "6" / "state")


def started(folder, cfg):
    return loop.Run(task(), cfg, folder, True, time.monotonic, loop.Stop())


def test_what_ails_the_machine_is_not_taken_for_damage(whole, tmp_path, monkeypatch):
    shutil.copytree(whole[1], tmp_path / "run")

    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "_state", full)
        with pytest.raises(jax.errors.JaxRuntimeError):
            loop.run(task(), STEPS, tmp_path / "run")
    run = started(tmp_path / "run", STEPS)
    run.checkpoints.close()
    assert run.step == 6


def test_where_all_are_damaged_it_says_so(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "run")
    for step in "56":
        truncated(tmp_path / "run" / "checkpoints" / step)
    for _ in range(2):  # the second time too: it does not begin anew in silence
        with pytest.raises(InputError, match=r"every checkpoint in .* is damaged; .* --fresh"):
            loop.run(task(), STEPS, tmp_path / "run")


def test_what_a_killed_save_left_is_cleared(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(checkpoints / "6", checkpoints / "7.orbax-checkpoint-tmp")
    loop.run(task(), STEPS, tmp_path / "run")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["5", "6"]


@pytest.fixture
def disk(monkeypatch):
    """Files may not grow beyond `disk(size)` bytes: both this and a full disk fail as a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(whole, tmp_path, disk, monkeypatch):
    shutil.copytree(whole[1], tmp_path / "run")
    run = started(tmp_path / "run", longer(8))
    with monkeypatch.context() as patch:
        patch.setattr(processes, "say", lambda text: None)  # the output of tests is a file, too
        disk(64)
        with pytest.raises(InputError, match=r"cannot be written .*; the last .* step 6:") as error:
            run.go()
        disk(resource.RLIM_INFINITY)
    assert "\n" not in str(error.value)
    again = started(tmp_path / "run", longer(8))
    assert again.step == 6 and again.go().finished


def test_a_source_that_stands_still_can_be_stopped(tmp_path):
    still = threading.Event()

    def stuck(seed, start):
        for number, batch in enumerate(batches(seed, start)):
            if number == 4:
                os.kill(os.getpid(), signal.SIGTERM)
                still.wait(30)
            yield batch

    began = time.monotonic()
    outcome = loop.run(task(batches=stuck), config(), tmp_path)
    still.set()
    assert not outcome.finished and int(outcome.state.step) in (3, 4)
    assert time.monotonic() - began < 20
    assert started(tmp_path, config()).go().finished


def test_a_disk_that_is_full_is_noticed_before_the_first_update(tmp_path, disk):
    run = started(tmp_path, config())
    disk(64)
    with pytest.raises(InputError, match=r"step 0 cannot be written .*; there is no checkpoint"):
        run.go()
    assert not run.programs.compiled


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_lost_mount_is_one_line(tmp_path, log_every):
    """Found by a log line, or by the checkpoint."""
    gone = tmp_path / "gone"

    def away(seed, start):
        for number, batch in enumerate(batches(seed, start)):
            if number == 4:
                (tmp_path / "run").rename(gone)
                (tmp_path / "run").write_text("")  # nor can the folder be made again
            yield batch

    cfg = longer(8, log_every=log_every, checkpoint_minutes=0.0 if log_every == 1 else 1e-9)
    with pytest.raises(InputError, match=r"cannot be written .*; the last good .* step \d") as e:
        loop.run(task(batches=away), cfg, tmp_path / "run")
    assert "\n" not in str(e.value)
    (tmp_path / "run").unlink()
    assert loop.run(task(), longer(8), gone).finished


def test_the_best_is_kept_beside_the_newest(tmp_path):
    """Targets that grow wilder from step 4 on: the least loss is that of steps 3 and 4."""

    def wild(seed, start):
        for step, batch in enumerate(batches(seed, start), start):
            yield {**batch, "y": batch["y"] * (1e4 if step >= 4 else 1.0)}

    cfg = longer(10, log_every=1, keep=3, keep_best=1, optim={"lr": 0.3, "warmup": 1})
    loop.run(task(batches=wild), cfg, tmp_path)
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    best = min(rows, key=lambda row: row["loss"])["step"]
    assert best <= 4 and kept == [best, 8, 9, 10]


def test_a_state_with_a_number_that_is_not_finite_is_not_saved(whole, tmp_path):
    """The loss and the gradient may be fine, as before a step of size infinity."""
    shutil.copytree(whole[1], tmp_path / "run")
    run = started(tmp_path / "run", longer(8))
    kernel = run.state.ema["layer"]["kernel"]
    run.state.ema["layer"]["kernel"] = kernel.at[2].set(jnp.inf)
    run.step = 7
    with pytest.raises(FloatingPointError, match=r"ema.*'kernel'.* not finite .* that of step 6:"):
        run.save()
    run.checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["5", "6"]


def test_checksums_do_not_depend_on_where_the_state_lies():
    mesh = sharding.make_mesh(data=8)
    rng = np.random.default_rng(0)
    tree = {
        "odd": rng.random((8, 3, 5), np.float32),
        "half": jnp.asarray(rng.random((16, 8)), jnp.bfloat16),
        "count": jnp.int32(7),
        "mask": rng.random(9) < 0.5,
    }
    alone = checkpoint.checksums(tree)
    for axis in (0, None):
        split = NamedSharding(mesh, PartitionSpec(axis))
        spread = {name: jax.device_put(tree[name], split) for name in ("odd", "half")}
        assert checkpoint.checksums({**tree, **spread}) == alone
    assert len({*alone.values()}) == 4
    swapped = {**tree, "odd": tree["odd"][::-1]}
    assert checkpoint.checksums(swapped)["['odd']"] != alone["['odd']"]


def test_a_run_goes_on_over_fewer_devices_with_the_same_samples(tmp_path, monkeypatch, capsys):
    """8 -> 4 -> 2, against one that nothing stopped."""

    def over(sizes):
        return make(**sizes, devices=jax.devices()[: math.prod(sizes.values())])

    def spied(seed, start):
        for step, batch in enumerate(batches(seed, start), start):
            seen.append((step, np.asarray(batch["x"]).tobytes()))
            yield batch

    make, work = sharding.make_mesh, {"rules": ((r"/layer/kernel", ("fsdp", None)), ("", ()))}
    monkeypatch.setattr(sharding, "make_mesh", lambda **sizes: over(sizes))
    seen, ends = [], []
    for folder, parts in (("whole", ((12, 1),)), ("cut", ((4, 8), (8, 4), (12, 2)))):
        for steps, devices in parts:
            mesh = {"data": max(1, devices // 2), "fsdp": min(2, devices)}
            optim = {"lr": 0.1, "warmup": 2, "schedule": "constant"}
            cfg = config(steps=steps, mesh=mesh, optim=optim)
            last = loop.run(task(batches=spied, **work), cfg, tmp_path / folder)
        ends.append(jax.device_get(last.state))
    assert "damaged" not in capsys.readouterr().out
    assert len({*seen}) == len({step for step, _ in seen}) >= 12
    for one, other in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
