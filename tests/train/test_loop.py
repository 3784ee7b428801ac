import json
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.errors import InputError
from mv2_jax.train import loop, optim
from mv2_jax.train.state import create, ema_decay, make_step

from .regression import batches, config, task


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of twelve steps, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return loop.run(task(), config(), folder), folder


def test_loss_falls_and_the_phase_reports(whole):
    outcome, folder = whole
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 4, 8, 12]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert {"loss", "grad_norm", "bias", "rate", "steps_per_s", "minutes"} <= rows[-1].keys()
    assert outcome.finished and int(outcome.state.step) == 12
    assert (folder / "curves.png").stat().st_size > 1000
    assert [p.name for p in (folder / "samples").iterdir()] == ["step_0000012.png"]


def test_it_solves_the_regression(tmp_path):
    outcome = loop.run(task(), config(steps=300, optim={"lr": 0.1, "weight_decay": 0.0}), tmp_path)
    kernel = np.asarray(outcome.state.params["layer"]["kernel"])[:, 0]
    np.testing.assert_allclose(kernel, [1, 2, 3, 4], atol=0.05)


class Clock:
    """Seconds that pass only when asked for: one a call."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def test_a_stopped_run_resumes_bit_for_bit(whole, tmp_path):
    def cut(seed, start):
        for number, batch in enumerate(batches(seed, start)):
            if number == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    first = loop.run(task(batches=cut), config(), tmp_path)
    assert not first.finished and 0 < int(first.state.step) < 12
    second = loop.run(task(), config(), tmp_path)
    assert second.finished
    assert same(second.state, whole[0].state)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps)) and steps[-1] == 12


def test_time_is_up_after_max_minutes_counted_over_runs(tmp_path):
    cfg = config(steps=10_000, max_minutes=1.0, checkpoint_minutes=0.0, sample_minutes=0.0)
    outcome = loop.run(task(), cfg, tmp_path, clock=Clock())
    assert outcome.finished and 1.0 <= outcome.minutes < 1.2
    again = loop.run(task(), cfg, tmp_path, clock=Clock())
    assert again.finished and int(again.state.step) == int(outcome.state.step)


def test_a_loss_that_is_not_finite_is_an_error(tmp_path):
    def broken(params, frozen, batch, key):
        return jnp.sum(params["layer"]["bias"]) * jnp.nan, {}

    with pytest.raises(FloatingPointError, match=r"'regression'.*lower regression\.optim\.lr"):
        loop.run(task(loss=broken), config(), tmp_path)


def sick(seed, start):
    """Batches whose targets are lost from step 5 on."""
    for step, batch in enumerate(batches(seed, start), start):
        yield {**batch, "y": batch["y"] * (jnp.nan if step >= 5 else 1.0)}


def steep(params, frozen, batch, key):
    """0, with a gradient of 0 times infinity."""
    return jnp.sqrt(0.0 * jnp.sum(params["layer"]["kernel"])), {}


@pytest.mark.parametrize(
    "change, what, kept", [({"batches": sick}, "loss", 5), ({"loss": steep}, "grad_norm", 0)]
)
def test_what_is_not_finite_is_never_saved(tmp_path, change, what, kept):
    cfg = config(log_every=50, checkpoint_minutes=1e-9)
    says = rf"the {what} of phase .* is nan by step .* checkpoint is that of step {kept}: lower"
    with pytest.raises(FloatingPointError, match=says):
        loop.run(task(**change), cfg, tmp_path)
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert max(saved) == kept


@pytest.mark.parametrize(
    "settings, says",
    [
        (
            {"batch": 6, "mesh": {"data": 2, "fsdp": 2}},
            "batch is 6: .* = 4 and .* = 1 .* 4, such as 8",
        ),
        ({"optim": {"accumulate": 3}}, "batch is 8: .* multiple of 3, such as 9"),
        (
            {"data": {"image_every": 2, "image_batch": 3}, "mesh": {"data": 8}},
            "data.image_batch is 3: .* such as 8",
        ),
        ({"log_every": 0}, "log_every is 0: it must be 1 or more"),
        ({"optim": {"accumulate": 0}}, "optim.accumulate is 0"),
        ({"mesh": {"fsdp": 0}}, "mesh.fsdp is 0"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(tmp_path, settings, says):
    with pytest.raises(InputError, match=says):
        loop.run(task(), config(**settings), tmp_path)


def test_over_a_mesh_the_state_is_made_where_it_lies(tmp_path, monkeypatch):
    given = []

    def spy(params, tx, *others):
        given.extend(jax.tree.leaves(params))
        return create(params, tx, *others)

    monkeypatch.setattr(loop, "create", spy)
    held = {"attn1": {"to_q": {"kernel": np.random.default_rng(0).random((8, 16), np.float32)}}}
    work = task(init=lambda key: held, frozen={})
    state = loop.run(work, config(steps=0, mesh={"fsdp": 8}), tmp_path).state
    assert all(isinstance(leaf, jax.core.Tracer) for leaf in given)
    assert same(state, create(held, optim.transformation(config().optim)))
    (kernel,) = jax.tree.leaves(state.ema)
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 16)


def test_a_checkpoint_of_another_network_is_refused(whole, tmp_path):
    def wider(key):
        return {"layer": {"kernel": jnp.zeros((5, 1)), "bias": jnp.zeros(1)}}

    cfg = config(steps=2)
    loop.run(task(), cfg, tmp_path)
    with pytest.raises(ValueError, match=r"float32\[4, 1\] there and float32\[5, 1\] here"):
        loop.run(task(init=wider), config(steps=4), tmp_path)


def test_what_the_data_thread_raises_arrives(tmp_path):
    def broken(seed, start):
        raise OSError("no data today")
        yield

    with pytest.raises(OSError, match="no data today"):
        loop.run(task(batches=broken), config(), tmp_path)


def one_step(cfg, fixed_task, batch):
    tx = optim.transformation(cfg.optim)
    state = create(fixed_task.init(jax.random.key(0)), tx)
    step = jax.jit(make_step(fixed_task, tx, cfg))
    return step(state, fixed_task.frozen, batch, jax.random.key(1), jnp.float32(0.1))


def test_accumulation_equals_one_large_batch():
    def quiet(params, frozen, batch, key):
        y = batch["x"] @ params["layer"]["kernel"] + params["layer"]["bias"][None]
        return jnp.mean(jnp.square(y - batch["y"])), {}

    batch = next(batches(3, 0))
    large, metrics = one_step(config(), task(loss=quiet), batch)
    parts, told = one_step(config(optim={"accumulate": 4}), task(loss=quiet), batch)
    for x, y in zip(leaves(large.params), leaves(parts.params), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-7)
    np.testing.assert_allclose(metrics["loss"], told["loss"], rtol=1e-6)
    with pytest.raises(ValueError, match="a batch of 8 does not split into 3"):
        one_step(config(optim={"accumulate": 3}), task(loss=quiet), batch)


def test_ema_follows_its_formula():
    cfg = config(ema={"decay": 0.9, "warmup": True})
    assert float(ema_decay(jnp.int32(0), 0.9, True)) == pytest.approx(0.1)
    assert float(ema_decay(jnp.int32(1000), 0.9, True)) == pytest.approx(0.9)
    assert float(ema_decay(jnp.int32(0), 0.9, False)) == pytest.approx(0.9)
    start = task().init(jax.random.key(0))
    state, _ = one_step(cfg, task(), next(batches(0, 0)))
    for p0, p1, ema in zip(leaves(start), leaves(state.params), leaves(state.ema), strict=True):
        np.testing.assert_allclose(ema, 0.1 * p0 + 0.9 * p1, atol=1e-6)


def sample_key(folder, **settings):
    run = loop.Run(task(), config(**settings), folder, False, Clock(), loop.Stop())
    run.checkpoints.close()
    return jax.random.key_data(run.sample_key).tolist()


def test_phases_of_a_chain_draw_other_numbers_and_arms_the_same(tmp_path):
    names = ("toybox/t2i/first", "toybox/t2i/second")
    chained = [sample_key(tmp_path, name=name) for name in names]
    arms = [sample_key(tmp_path, name=name, chain=False) for name in names]
    assert chained[0] != chained[1] and arms[0] == arms[1]


def test_no_thread_outlives_a_run(whole):
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}
