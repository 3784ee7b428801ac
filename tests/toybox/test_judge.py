import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.config import JudgeConfig
from mv2_jax.errors import InputError
from mv2_jax.toybox import judge, judge_data, split
from mv2_jax.toybox.vocabulary import SIZES
from mv2_jax.train.phase import phase
from mv2_jax.train.task import Component
from mv2_jax.train.toybox import judge as task

CFG = JudgeConfig(size=32, frames=4, frame_channels=(8, 8), motion_channels=(8, 8), hidden=16)


@pytest.fixture(scope="module")
def batch():
    return jax.device_get(judge_data.judge_batch(jax.random.key(0), 32, CFG))


def test_a_batch_has_the_shape_and_range_it_should(batch):
    assert batch["frames"].shape == (128, 32, 32, 3)
    assert batch["clips"].shape == (32, 4, 16, 16, 3)
    for source, count in (("frame", 128), ("clip", 32)):
        assert np.abs(batch[f"{source}s"]).max() <= 1.0
        assert batch[f"{source}_labels"].shape == (count, 4)
        assert batch[f"{source}_weights"].shape == (count, 4)
    again = judge_data.judge_batch(jax.random.key(0), 32, CFG)
    assert (np.asarray(again["clips"]) == batch["clips"]).all()


@pytest.mark.parametrize(("source", "count"), [("frame", 128), ("clip", 32)])
def test_labels_follow_the_plan(batch, source, count):
    places = judge_data._layout(count, source == "clip")
    labels, weights = batch[f"{source}_labels"], batch[f"{source}_weights"]
    assert list(places.values())[-1].stop == count
    for sort, (*_, fates) in judge_data.PLAN.items():
        for i, fate in enumerate(fates):
            if places[sort].stop == places[sort].start:
                continue
            gone = labels[places[sort], i] == SIZES[i]
            assert gone.all() if fate == judge_data.GONE else not gone.any(), (sort, i)
            if sort != "two worlds":
                assert (weights[places[sort], i] == (fate != judge_data.OPEN)).all()


@pytest.mark.parametrize("clips", [False, True])
def test_nothing_withheld_is_shown(clips):
    places = judge_data._layout(64, clips)
    worlds = jax.vmap(split.sample_train_world)(jax.random.split(jax.random.key(1), 64))
    blended = slice(places["two worlds"].start, places["two motions"].stop)
    others = judge_data._partners(jax.random.key(2), worlds, places, blended)
    words = np.stack(others[:4], axis=-1)
    assert split.is_train(*words.T).all()
    mine = np.stack(worlds[:4], axis=-1)[blended]
    for sort, kind in (("two things", 0), ("two scenes", 2), ("two motions", 3)):
        at = slice(places[sort].start - blended.start, places[sort].stop - blended.start)
        differ = mine[at] != words[at]
        assert (differ == (np.arange(4) == kind)[None]).all(), sort


def test_a_still_clip_stands_still_and_a_shuffled_one_does_not_keep_its_order():
    places = judge_data._layout(32, True)
    times = np.asarray(judge_data._times(jax.random.key(3), 32, 8, places))
    assert (np.ptp(times[places["still"]], axis=1) == 0).all()
    assert (np.ptp(times[places["slow"]], axis=1) <= 0.12).all()
    shuffled = times[places["shuffled"]]
    assert (np.diff(shuffled) < 0).any(axis=1).all()
    np.testing.assert_allclose(
        np.sort(shuffled), np.broadcast_to(np.linspace(0, 1, 8), shuffled.shape), atol=1e-6
    )
    assert (times[places["true"]] == times[0]).all()


def test_scrambling_moves_squares_only():
    video = jax.random.uniform(jax.random.key(4), (2, 3, 32, 32, 3))
    out = judge_data._scramble(jax.random.key(5), video)
    assert not np.array_equal(out, video)
    np.testing.assert_array_equal(np.sort(out.ravel()), np.sort(video.ravel()))


def test_no_melting_is_no_change():
    video = jax.random.uniform(jax.random.key(4), (2, 3, 32, 32, 3))
    np.testing.assert_array_equal(judge_data._melt(jax.random.key(5), video, 0.0), video)


def test_a_batch_must_fit_the_plan():
    with pytest.raises(ValueError, match="multiple of 32"):
        judge_data.judge_batch(jax.random.key(0), 20, CFG)


def test_the_loss_falls(batch):
    weights = judge.init(CFG, jax.random.key(6))
    key = jax.random.key(7)
    step = jax.jit(jax.value_and_grad(lambda w: judge.judge_loss(w, batch, key, CFG), has_aux=True))
    (first, metrics), _ = step(weights)
    assert set(metrics) == set(judge.KINDS)
    for _ in range(8):
        (last, _), grads = step(weights)
        weights = jax.tree.map(lambda w, g: w - 0.02 * jnp.sign(g) * 0.2, weights, grads)
    assert last < 0.9 * first


def test_what_is_open_does_not_count(batch):
    weights = judge.init(CFG, jax.random.key(6))
    zeros = {name: np.zeros_like(v) for name, v in batch.items() if name.endswith("weights")}
    none = {**batch, **zeros}
    loss, _ = judge.judge_loss(weights, none, jax.random.key(7), CFG)
    assert float(loss) == 0.0


def test_prepare_takes_any_size_and_type():
    ramp = np.linspace(0, 255, 40).astype(np.uint8)
    video = np.broadcast_to(ramp[None, None, :, None, None], (2, 9, 40, 56, 3))
    out = judge.prepare(video, CFG)
    assert out.shape == (2, 4, 32, 32, 3)
    same = judge.prepare(video / np.float32(127.5) - 1, CFG)
    np.testing.assert_allclose(out, same, atol=1e-6)
    one = judge.prepare(video[:, :1], CFG)
    assert one.shape == out.shape


def test_one_half_alone_is_trained_on(batch):
    whole = judge.init(CFG, jax.random.key(6))
    cfg = phase("judge", batch=32, train=("motion",))
    made = task.make(cfg, {"judge": Component(whole, CFG)}, None)
    mine = made.init(jax.random.key(0))
    assert set(mine) | set(made.frozen) == set(whole) and not set(mine) & set(made.frozen)
    assert set(mine) == {"motion_trunk", "motion_hidden", "motion_head"}
    clips = {name: value for name, value in batch.items() if name.startswith("clip")}
    _, metrics = made.loss(mine, made.frozen, clips, jax.random.key(7))
    assert set(metrics) == {"motion"}
    _, both = judge.judge_loss(whole, batch, jax.random.key(7), CFG)
    np.testing.assert_allclose(metrics["motion"], both["motion"])
    assert set(made.components(mine)["judge"]) == set(whole)
    with pytest.raises(InputError, match="did you mean 'motion'"):
        task.make(phase("judge", batch=32, train=("motions",)), {}, None)
    with pytest.raises(InputError, match="from a judge in `begin`"):
        task.make(cfg, {}, None)
