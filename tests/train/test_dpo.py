"""Diffusion-DPO: the loss beside NumPy, what it learns, and the task on networks of nothing."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from mv2_jax.config import ScheduleConfig, SparseControlConfig, to_dict
from mv2_jax.configs.toybox import dpo as recipe
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import losses, process, schedules
from mv2_jax.errors import InputError
from mv2_jax.stages import stage
from mv2_jax.toybox.vocabulary import MOTIONS
from mv2_jax.train import lora
from mv2_jax.train.preference import dpo_loss
from mv2_jax.train.task import Component
from mv2_jax.train.toybox import dpo, pairs

SHAPE = (3, 4, 5, 2)


def net(weights, x, t):
    """A network of nothing: channels mixed, and the time added."""
    return (
        x @ weights["mix"] + weights["by_time"][None, None, None] * (t / 1000)[:, None, None, None]
    )


def weights(seed):
    mix, by_time = jax.random.split(jax.random.key(seed))
    return {"mix": jax.random.normal(mix, (2, 2)), "by_time": jax.random.normal(by_time, (2,))}


def samples(seed, shift=0.0):
    return jax.random.normal(jax.random.key(seed), SHAPE) + shift


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_loss_is_the_papers_in_numpy(kind):
    schedule, keys = ScheduleConfig(prediction=kind), named.per_sample(jax.random.key(9), 3)
    better, worse, model, before = samples(1), samples(2), weights(3), weights(4)
    found, metrics = dpo_loss(
        partial(net, model), partial(net, before), better, worse, keys, schedule, beta=5.0
    )
    t = np.asarray(process.of(schedule).at(losses.positions(keys)).t).astype(int)
    eps = np.asarray(named.normal(named.fold(keys, "noise"), SHAPE[1:]), np.float64)
    alpha, sigma = (np.asarray(a, np.float64)[t] for a in schedules.signal_and_noise(schedule))

    def error(weights, x0):
        total = []
        for i in range(3):
            x = alpha[i] * x0[i] + sigma[i] * eps[i]
            out = x @ np.asarray(weights["mix"]) + np.asarray(weights["by_time"]) * t[i] / 1000
            wanted = eps[i] if kind == "eps" else alpha[i] * eps[i] - sigma[i] * x0[i]
            total.append(np.mean((out - wanted) ** 2))
        return np.array(total)

    w, l = np.asarray(better, np.float64), np.asarray(worse, np.float64)
    inside = (error(model, w) - error(before, w)) - (error(model, l) - error(before, l))
    logits = -2.5 * inside
    assert float(found) == pytest.approx(np.mean(np.log1p(np.exp(-logits))), rel=2e-5)
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(logits > 0))
    assert float(metrics["mse_better"]) == pytest.approx(error(model, w).mean(), rel=2e-5)


def test_at_the_reference_nothing_is_preferred_and_nothing_flows_through_it():
    keys, own = named.per_sample(jax.random.key(9), 3), weights(3)
    args = (samples(1), samples(2), keys, ScheduleConfig(), 100.0)
    loss, metrics = dpo_loss(partial(net, own), partial(net, own), *args)
    assert float(loss) == pytest.approx(np.log(2), rel=1e-6) and metrics["margin"] == 0
    slope = jax.grad(lambda w: dpo_loss(partial(net, own), partial(net, w), *args)[0])(own)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(slope))
    with pytest.raises(ValueError, match="no pairs"):
        dpo_loss(partial(net, own), partial(net, own), samples(1), samples(2)[:2], *args[2:])


def test_on_one_batch_the_loss_falls_and_preference_turns_right():
    before, better, worse = weights(4), samples(1, 1.0), samples(2, -1.0)

    @jax.jit
    def step(now, i):
        keys = named.per_sample(named.fold(jax.random.key(0), i), 3)

        def loss(w):
            models = (partial(net, w), partial(net, before))
            return dpo_loss(*models, better, worse, keys, ScheduleConfig(), 50.0)

        (value, metrics), slope = jax.value_and_grad(loss, has_aux=True)(now)
        return jax.tree.map(lambda w, g: w - 0.02 * g, now, slope), value, metrics["accuracy"]

    now, seen = before, []
    for i in range(60):
        now, value, accuracy = step(now, i)
        seen.append((float(value), float(accuracy)))
    assert seen[0][0] == pytest.approx(np.log(2), rel=1e-5)
    late = np.mean(seen[-10:], axis=0)
    assert late[0] < 0.5 and late[1] > 0.8


def test_the_judges_favourite_is_the_better(monkeypatch):
    given = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 5.0], [1.0, 1.0, 1.0]])  # [candidates, rows]
    monkeypatch.setattr(pairs, "scores", lambda jury, video, words: given[video])
    found = pairs.rank(None, np.zeros((3, 4)), 3, lambda number: (np.full((3, 2), number), number))
    assert found["better"][:, 0].tolist() == [0, 1, 1] and found["worse"][0, 0] == 1
    assert found["worse"][1, 0] in (0, 2) and found["margin"].tolist() == [3, 4, 4]
    with pytest.raises(ValueError, match="two candidates"):
        pairs.rank(None, np.zeros((3, 4)), 1, None)


def phase(arm, **loss):
    cfg = recipe.get_config().phases[arm]
    if cfg.stage == "t2i":
        cfg.model.t2i = ConfigDict(to_dict(tiny.PICTURE))
    cfg.data.update(count=4, shard=4, chunk=2)
    cfg.update(batch=2)
    cfg.loss.update(loss)
    return cfg


@pytest.fixture(scope="module")
def begin():
    four = tiny.make()
    configs = {"vae": tiny.VAE, "text_encoder": tiny.TEXT, "spatial": tiny.SPATIAL}
    return {name: Component(four.params[name], config) for name, config in configs.items()}


def task_of(cfg, begin, folder, monkeypatch):
    """The task, whose pairs are noise instead of what the network makes."""

    def candidates(self, numbers, words):
        rng = np.random.default_rng(int(numbers[0]))
        found = {n: rng.normal(size=(2, 6, 6, 4)).astype(np.float16) for n in ("better", "worse")}
        return {**found, "margin": np.asarray(numbers, np.float32)}

    monkeypatch.setattr(dpo.Pictures, "candidates", candidates)
    return dpo.make(cfg, begin, folder / "arm")


def test_the_task_trains_spatial_weights_whole_or_by_lora(begin, tmp_path, monkeypatch):
    cfg = phase("pictures")
    whole = task_of(cfg, begin, tmp_path, monkeypatch)
    batch = next(whole.batches(0, 0))
    assert batch["better"].shape == (2, 6, 6, 4) and batch["ids"].shape == (2, 20)
    assert set(whole.init(jax.random.key(0))) == {"spatial"}
    cfg.lora.update(rank=2, match="attn2")
    low = lora.adapted(task_of(cfg, begin, tmp_path, monkeypatch), cfg)
    factors = low.init(jax.random.key(0))
    for task, params in ((whole, whole.init(jax.random.key(0))), (low, factors)):
        loss, metrics = jax.eval_shape(task.loss, params, task.frozen, batch, jax.random.key(1))
        assert loss.shape == () and "accuracy" in metrics
    merged = low.components(factors)["spatial"]
    same = jax.tree.map(np.array_equal, merged, whole.frozen["spatial"])
    assert jax.tree.all(same) and set(low.configs(factors)) == {"spatial"}
    sizes = [sum(x.size for x in jax.tree.leaves(t)) for t in (factors, merged)]
    assert sizes[0] < 0.2 * sizes[1]
    assert lora.merge(whole.frozen["spatial"], factors["spatial"]).keys() == merged.keys()


def test_the_baseline_learns_from_the_same_winners(begin, tmp_path, monkeypatch):
    dpo_task = task_of(phase("pictures"), begin, tmp_path, monkeypatch)
    cfg = phase("pictures_winners")
    winners = task_of(cfg, begin, tmp_path, monkeypatch)
    ours, theirs = next(dpo_task.batches(0, 1)), next(winners.batches(0, 1))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    _, metrics = jax.eval_shape(
        winners.loss, winners.init(jax.random.key(0)), winners.frozen, ours, jax.random.key(1)
    )
    assert "mse" in metrics and "accuracy" not in metrics


def test_a_sparse_control_learns_from_the_latent_it_was_sampled_with(tmp_path, monkeypatch):
    body = dataclasses.replace(
        tiny.SPATIAL, motion=dataclasses.replace(tiny.MOTION, mid_block=False)
    )
    control = SparseControlConfig(body)
    clip = stage.build("i2v", tiny.KEYFRAMES, {**tiny.NETWORKS, "control": control}, 8)
    made = tiny.random(jax.eval_shape(partial(stage.init, clip), jax.random.key(0)), 1)
    held = {"text_encoder": tiny.TEXT, "spatial": tiny.SPATIAL, "motion": tiny.MOTION}
    held |= {"image_encoder": tiny.VISION, "image_attn": tiny.PROJECTION, "control": control}
    parts = {name: Component(made[name], config) for name, config in held.items()}
    parts |= {
        "motion_i2v": parts.pop("motion"),
        "vae": Component(tiny.make().params["vae"], tiny.VAE),
    }
    cfg = phase("clips")
    cfg.model.i2v = ConfigDict(to_dict(tiny.KEYFRAMES))
    cfg.data.update(count=2, shard=2, motions=dict.fromkeys(MOTIONS[1:], 0.0))
    seen = []

    def sample(params, net, inputs, reference, *rest, **more):
        seen.append((inputs.get("reference", reference), reference))
        return np.zeros((2, *net.latent_shape), np.float32)

    def rank(jury, words, candidates, make):
        assert not words[:, 3].any()  # the one motion that `data.motions` leaves
        return {"better": make(0)[0], "worse": make(1)[0], "margin": np.ones(2)}

    monkeypatch.setattr(dpo.i2v, "sample", sample)
    monkeypatch.setattr(dpo.pairs, "rank", rank)
    task = dpo.make(cfg, parts, tmp_path / "clips")
    batch = next(task.batches(0, 0))
    shown, reference = seen[0]
    assert np.array_equal(shown, reference)
    assert np.array_equal(batch["reference"], np.asarray(reference, np.float16))
    given, predict = [], stage.predict_one

    def watched(params, cfg, x, t, conditioning):
        given.append(conditioning["control"]["shown"])
        return predict(params, cfg, x, t, conditioning)

    monkeypatch.setattr(dpo.stages, "predict_one", watched)
    weights = task.init(jax.random.key(0))
    loss, _ = jax.eval_shape(task.loss, weights, task.frozen, batch, jax.random.key(1))
    assert loss.shape == () and {x.shape for x in given} == {(4, *reference.shape[1:])}


def test_pairs_that_the_judge_does_not_tell_apart_are_left_out(begin, tmp_path, monkeypatch):
    cfg = phase("pictures")  # of four pairs, whose margins are their numbers
    cfg.data.margin = 2.0
    batches = task_of(cfg, begin, tmp_path, monkeypatch).batches(0, 0)
    seen = {float(m) for _ in range(5) for m in next(batches)["margin"]}
    assert seen == {2.0, 3.0}
    cfg.data.margin = 3.5
    with pytest.raises(InputError, match=r"no pair of 4 differs by 3.5; the largest .* is 3"):
        next(task_of(cfg, begin, tmp_path, monkeypatch).batches(0, 0))


def test_prompts_are_dropped_as_often_as_asked(begin, tmp_path, monkeypatch):
    cfg = phase("pictures", drop_text=0.5, drop_image=0.25)
    made = dpo.Pictures(cfg, begin, tmp_path / "arm")
    words = [made.words.encode([text]) for text in ("a red ball", "")]
    inputs = {"ids": np.repeat(words[0], 400, axis=0), "negative": words[1]}
    keys = named.per_sample(jax.random.key(0), 400)
    conditioning = stage.drop(made.base, made.net, inputs, keys, {**cfg.loss})["text"].text
    ball, nothing = (made.net.condition("text").prompt(made.base, made.net, x) for x in words)
    dropped = np.abs(conditioning - nothing.text).max((1, 2)) < 1e-5
    kept = np.abs(conditioning - ball.text).max((1, 2)) < 1e-5
    assert (dropped ^ kept).all() and abs(dropped.mean() - 0.5) < 0.1


def test_unknown_words_are_named(begin, tmp_path):
    with pytest.raises(InputError, match="did you mean 'winners'"):
        dpo.make(phase("pictures", kind="winner"), begin, tmp_path)
    with pytest.raises(InputError, match="needs the component 'motion_i2v'"):
        dpo.make(recipe.get_config().phases.clips, begin, tmp_path)
    cfg = phase("pictures")
    cfg.train = ("spatal",)
    with pytest.raises(InputError, match="did you mean 'spatial'"):
        dpo.make(cfg, begin, tmp_path)
