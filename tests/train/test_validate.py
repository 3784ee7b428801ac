"""Averages of several lengths, and the error by timestep that chooses among them."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mv2_jax.errors import InputError
from mv2_jax.train import loop, lora, optim, phase, source, unread
from mv2_jax.train.checkpoint import Checkpoints
from mv2_jax.train.state import create, make_step
from mv2_jax.train.validate import positions
from mv2_jax.train.weights import components_in, write_weights

from .regression import batches, config, task

LENGTHS = {"decay": 0.9, "also": (0.5, 0.99), "warmup": False}


def error_at(params, frozen, batch, key, u):
    """Lowest where the bias is 0.5 u, so that by the positions' mean it is 0.25."""
    return jnp.square(params["layer"]["bias"][0] - 0.5 * u) + 0.0 * jax.random.normal(key)


def checked(**settings):
    """A task and its settings, with validation."""
    told = {"every": 5, "batches": 2, "levels": 4}
    rate = {"lr": 0.3, "warmup": 0, "schedule": "constant"}  # the same in runs of any length
    given = {"validate": told, "ema": LENGTHS, "optim": rate, "reports": ()}
    cfg = config(**{**given, **settings})
    return task(error_at=error_at), cfg


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return loop.run(*checked(), folder), folder


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_average_is_the_weighted_sum_of_the_weights_so_far():
    work, cfg = task(), config(ema=LENGTHS)
    tx = optim.transformation(cfg.optim)
    state, step = create(work.init(jax.random.key(0)), tx, 2), jax.jit(make_step(work, tx, cfg))
    feed, seen = batches(0, 0), [np.asarray(state.params["layer"]["kernel"], np.float64)]
    for _ in range(5):
        state, _ = step(state, work.frozen, next(feed), jax.random.key(1), jnp.float32(0.1))
        seen.append(np.asarray(state.params["layer"]["kernel"], np.float64))
    for decay, tree in zip((0.9, 0.5, 0.99), (state.ema, *state.others), strict=True):
        shares = [decay**5] + [(1 - decay) * decay ** (5 - n) for n in range(1, 6)]
        wanted = sum(share * x for share, x in zip(shares, seen))
        np.testing.assert_allclose(tree["layer"]["kernel"], wanted, atol=1e-6)


def test_a_resumed_run_has_the_same_averages_and_errors(whole, tmp_path):
    work, cfg = checked()
    cut = loop.run(work, checked(steps=7)[1], tmp_path)
    assert cut.finished
    again = loop.run(work, cfg, tmp_path)
    for a, b in zip(jax.tree.leaves(again.state), jax.tree.leaves(whole[0].state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.errors == whole[0].errors and len(again.errors) == 3


def test_the_error_is_told_by_position_and_by_average(whole):
    outcome, folder = whole
    told = {row["step"]: row for row in rows(folder) if "val_loss" in row}
    assert [*told] == [8, 12]  # of steps 5 and 10, in the next line; and at the end
    bias = float(outcome.state.ema["layer"]["bias"][0])
    for u in positions(4):
        assert told[12][f"val_loss_{u:.2f}"] == pytest.approx((bias - u / 2) ** 2, rel=1e-4)
    for decay, tree in zip((0.5, 0.99), outcome.state.others):
        bias = float(tree["layer"]["bias"][0])
        wanted = np.mean([(bias - u / 2) ** 2 for u in positions(4)])
        assert told[12][f"val_loss_ema{decay:g}"] == pytest.approx(wanted, rel=1e-4)


def test_the_average_of_the_lowest_error_is_the_phases_and_the_others_are_kept(whole, tmp_path):
    outcome, _ = whole
    assert outcome.chosen == int(np.argmin(outcome.errors)) and len({*outcome.errors}) == 3
    assert outcome.chosen != 0  # else nothing was chosen
    write_weights(tmp_path / "weights", *(checked()[0], outcome, checked()[1]), {})
    trees = [outcome.state.ema, *outcome.state.others]
    names = ["ema_0.9", "ema_0.5", "ema_0.99"]
    names[outcome.chosen] = ""
    for name, tree in zip(names, trees, strict=True):
        (held,) = components_in(tmp_path / "weights" / name).values()
        wanted = np.asarray(tree["layer"]["kernel"], np.float16)
        np.testing.assert_array_equal(held.params["layer"]["kernel"], wanted)


def test_a_checkpoint_of_an_older_version_has_one_average(tmp_path):
    held = create(task().init(jax.random.key(0)), optim.transformation(config().optim))
    old = {name: part for name, part in held._asdict().items() if name != "others"}
    with ocp.CheckpointManager(tmp_path) as manager:
        notes = ocp.args.JsonSave({"elapsed": 0.0, "flop": 0.0})
        state = ocp.args.StandardSave(old)
        manager.save(3, args=ocp.args.Composite(state=state, notes=notes))
    kept = Checkpoints(tmp_path)
    found, _ = kept.restore(jax.tree.map(jnp.copy, held))
    kept.close()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(held), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"ema": {"also": (1.0,)}}, r"ema\.also is 1\.0: it must be from 0 to below 1"),
        ({"ema": {"also": (0.999,)}}, "each length once"),
        ({"validate": {"every": 5, "levels": 0}}, r"validate\.levels is 0: it must be 1 or more"),
    ],
)
def test_numbers_that_do_not_hold_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        phase.check(config(**settings))


def test_validation_without_a_rhythm_or_an_error_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"validate\.levels has no effect: validate\.every is 0"):
        unread.check(config(validate={"levels": 8}))
    with pytest.raises(InputError, match="task 'regression' has no error by timestep"):
        loop.run(task(), config(validate={"every": 5}), tmp_path)


def test_a_folder_to_validate_on_is_for_sources_that_read_files():
    cfg = config(validate={"every": 1, "root": "elsewhere"}, data={"source": "toybox"})
    drawn = types.SimpleNamespace(cfg=cfg, source=types.SimpleNamespace(streams=False))
    with pytest.raises(InputError, match=r"validate\.root: only sources that read clips"):
        source.held_out(drawn)


def test_a_lora_is_validated_merged():
    """`error_at` of the regression over its own kernel, at the kernel's size."""

    def kernel_at(params, frozen, batch, key, u):
        return u * jnp.sum(params["layer"]["kernel"] ** 2)

    cfg = config(lora={"rank": 1})
    work = lora.adapted(task(error_at=kernel_at), cfg)
    factors = jax.tree.map(jnp.ones_like, work.init(jax.random.key(0)))
    found = work.error_at(factors, work.frozen, {}, jax.random.key(0), 0.5)
    whole = np.asarray(work.frozen["layer"]["kernel"]) + 1.0
    assert float(found) == pytest.approx(0.5 * np.sum(whole**2), rel=1e-6)
