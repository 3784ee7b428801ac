"""Distilling a cascade's stages to few steps: trained, packed, and run as their weights say."""

import json

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from mv2_jax import bundle, cascade
from mv2_jax.configs.toybox import few
from mv2_jax.diffusion import distillation, guidance, keys
from mv2_jax.errors import InputError
from mv2_jax.stages import stage as stages
from mv2_jax.train import cascades, pack, recipe, weights
from mv2_jax.train.phase import arms, packing
from mv2_jax.train.tasks import distil, t2i


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    four = tiny.make()
    four = four.with_numbers("t2i", guidance=3.0).with_numbers("i2v", image_guidance=1.5)
    return tiny.write(tmp_path_factory.mktemp("few") / "cascade", four).folder


def settings(folder, stage, **more):
    clips = {"count": 4, "shard": 4, "image_every": 0, "decoded": 0.5}
    data = {"count": 4, "shard": 4, "sizes": (48,)} if stage == "t2i" else clips
    train = ("spatial",) if stage == "t2i" else ("motion",)
    given = {"data": data, "train": train, "cascade": str(folder), **more}
    given["optim"] = {"lr": 1e-2, "warmup": 1, "schedule": "constant"}
    return few.distilled(stage, steps=3, batch=2, sample_minutes=0.0, log_every=1, **given)


def trained(root, cfg):
    """The weights' folder of a phase of this configuration."""
    whole = arms(one=cfg)
    whole.phases.one.name = "few/one"
    cascades.complete(whole.phases.one)
    recipe.run_phase(root, "few", whole, "one", resume=False)
    return root / "few" / "one" / "weights"


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("t2i", marks=pytest.mark.slow),
        pytest.param("i2v", marks=pytest.mark.long),
        pytest.param("v2v", marks=pytest.mark.long),
    ],
)
def test_a_distilled_stage_runs_as_its_weights_say(folder, stage, tmp_path):
    steps = {"steps": 4}
    made_by = settings(folder, stage, teacher={"guidance": 3.0}, student=steps)
    out = trained(tmp_path, made_by)
    index = json.loads((out / "phase.json").read_text())
    assert index["steps"] == 3 and index["numbers"][stage]["guidance"] == 1.0
    logged = [json.loads(line) for line in (out.parent / "metrics.jsonl").open()]
    assert all(np.isfinite(line["loss"]) and line["gap"] > 0 for line in logged)
    sources = (str(folder), str(out))
    settled = packing(sources=sources, into=str(tmp_path / "packed"))
    four = cascade.load(pack.pack(tmp_path, "few", settled, ()))
    assert four.stage(stage).stage.sampler == "lcm" and four.numbers[stage].steps == 4
    rng = np.random.default_rng(0)
    given = [rng.uniform(-1, 1, (1, 48, 48, 3)), rng.uniform(-1, 1, (1, 3, 32, 32, 3))]
    given = given[: ("t2i", "i2v", "v2v").index(stage)]
    begun = four.chain(stage, ["a red ball"], keys.seeds([1]), {}, *given)
    assert begun.rule.rows == 1 and begun.steps == 4
    assert np.isfinite(begun.end().x).all()
    # Trained, and the rest as it was.
    before = bundle.read(folder)
    name = {"t2i": "spatial", "i2v": "motion_i2v", "v2v": "motion_v2v"}[stage]
    held = four.component("t2i", "spatial") if stage == "t2i" else name
    pair = four.params[held], before.load(name)
    apart = jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), *pair))
    assert max(apart) > 1e-4


def made(folder, where, **more):
    """The student of T2I in a cascade's folder."""
    cfg = ConfigDict(settings(folder, "t2i", **more))
    cascades.complete(cfg)
    begin = cascades.parts(weights.components_in(folder), True)
    distil.make(cfg, begin, where)
    return distil.Student(cfg, t2i.PictureTask(distil._as_the_stages_own(cfg), begin, where))


def test_the_loss_is_of_a_guided_teacher_that_stays_and_one_row_of_the_student(folder, tmp_path):
    student = made(folder, tmp_path, teacher={"guidance": 30.0})
    task, net, key = student.task(), student.net, keys.seed(1)
    batch, begun = next(task.batches(0, 0)), task.init(key)
    learnt = jax.tree.map(lambda leaf: 1.1 * leaf, begun)
    latent = np.float32(batch["latent"])[:, None]
    nothing = np.repeat(student.base.words.encode([""]), len(latent), axis=0)

    def told(params, ids):
        whole = {**task.frozen, **params}
        inputs = {"ids": ids, "negative": nothing}
        given = stages.condition(whole, inputs, cfg=net, rule=guidance.NONE)
        given = jax.tree.map(lambda leaf: leaf[0], given)
        return lambda x, point: stages.predict_one(whole, net, x, point.t, given)

    text, none = told(begun, batch["ids"]), told(begun, nothing)

    def teacher(x, point):
        return none(x, point) + 30.0 * (text(x, point) - none(x, point))

    @jax.jit
    def wanted(params):
        given = (told(params, batch["ids"]), teacher, latent, keys.per_sample(key, len(latent)))
        return distillation.loss(*given, net.stage.schedule, student.how)[0]

    loss, _ = jax.jit(task.loss)(learnt, task.frozen, batch, key)
    np.testing.assert_allclose(loss, wanted(learnt), rtol=2e-5)


def test_the_teacher_is_guided_by_the_cascades_numbers_unless_told(folder, tmp_path):
    def scales(more=(), **teacher):
        return made(folder, tmp_path, teacher=teacher, **dict(more)).scales

    own = bundle.read(folder).numbers["t2i"].guidance
    assert scales().text == own and scales(guidance=2.0).text == 2.0
    with pytest.raises(InputError, match="teacher: t2i has no setting 'guidanse'; did you mean"):
        scales(guidanse=2.0)
    with pytest.raises(InputError, match=r"task 'distil' reads no setting 'teacher\.steps'"):
        scales(steps=30)
    with pytest.raises(InputError, match=r"distil: unknown setting 'point'.*mean 'points'"):
        scales({"distil": {"point": 20}})
    with pytest.raises(InputError, match=r"student\.steps: .*51"):
        scales({"student": {"steps": 51}})
    with pytest.raises(InputError, match="task 'distil' reads no setting 'loss'"):
        trained(tmp_path, settings(folder, "t2i", loss={"drop_text": 0.5}))
