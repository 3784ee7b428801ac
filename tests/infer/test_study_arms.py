"""The arms of a study trained, and run in the cascade's place, on networks of nothing."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from mv2_jax import bundle as bundles
from mv2_jax import cascade
from mv2_jax.infer import mechanisms, settings, study_arms

RECIPE = """
from ml_collections import ConfigDict
import tiny
from mv2_jax.config import to_dict
from mv2_jax.configs.toybox import {source}
from mv2_jax.train.phase import arms

SIZES = dict(t2i=tiny.PICTURE, i2v=tiny.KEYFRAMES, vision=tiny.VISION, projection=tiny.PROJECTION,
             control=tiny.CONTROL)

def small(phase):
    phase.update(steps=4, batch=2, log_every=2)
    phase.optim.update(lr=1e-2, warmup=1)
    for name in phase.model:
        phase.model[name] = ConfigDict(to_dict(SIZES[name]))
    phase.data.update(count=4, shard=4)
    if "chunk" in phase.data:
        # No margin: of what networks of nothing make, the judge has no opinion.
        phase.data.update(chunk=2, candidates=2, margin=0.0)
        phase.sample.steps = 2
    if "image_batch" in phase.data:
        phase.data.image_every = 0
    return phase

def get_config():
    phases = {source}.get_config().phases
    return arms(**{{name: small(phases[name]) for name in {chosen}}})
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    jax.config.update("jax_disable_most_optimizations", True)
    yield tiny.write(tmp_path_factory.mktemp("weights") / "tiny", tiny.make())
    jax.config.update("jax_disable_most_optimizations", False)


def trained(which, source, chosen, bundle, folder, monkeypatch):
    path = folder / "arms.py"
    path.write_text(RECIPE.format(source=source, chosen=chosen))
    monkeypatch.setitem(study_arms.RECIPES, which, str(path))
    return study_arms.train(which, bundle, folder / "runs", 2)


@pytest.mark.long
def test_arms_of_training_begin_alike_and_run_in_their_stage(bundle, tmp_path, monkeypatch):
    chosen = ("everything", "no_tokens")
    arms = trained("training", "ablations", chosen, bundle, tmp_path, monkeypatch)
    parts = {"motion_i2v", "image_encoder", "image_attn", "control"}
    assert all(set(arms[name]) == {"i2v"} and set(arms[name]["i2v"]) == parts for name in chosen)
    digests = study_arms.digest(arms)
    assert digests["everything/control"] != digests["no_tokens/control"]
    four = cascade.load(bundle)
    numbers = settings.resolve({}, {}, bundle)
    bench = mechanisms.Bench(
        four, ["a red ball"], [0], numbers, arms=study_arms.cascades(four, arms)
    )
    studied = [v for v in study_arms.variants("training") if v.weights in chosen]
    made = [bench.make(variant) for variant in (mechanisms.FULL, *studied)]
    assert len(studied) == 4
    assert all(np.array_equal(one.picture, made[0].picture) for one in made)
    assert len({one.keyframes.tobytes() for one in made}) == 5
    # The second time they are found, not trained.
    again = study_arms.train("training", bundle, tmp_path / "runs", 2)
    assert study_arms.digest(again) == digests


def test_arms_of_t2i_take_the_place_of_its_own_networks():
    four = tiny.make()
    arms = {"pictures": {"t2i": {"spatial": {"w": np.ones(2, np.float32)}}}}
    shared = study_arms.cascades(four, arms)["pictures"]["t2i"]
    assert shared.parameters("t2i")["spatial"]["w"].all()
    four = dataclasses.replace(four, params={**four.params, "t2i_unet": {"w": np.zeros(2)}})
    own = study_arms.cascades(four, arms)["pictures"]["t2i"]
    assert own.parameters("t2i")["spatial"]["w"].all()
    assert own.parameters("i2v")["spatial"] is four.params["spatial"]


@pytest.mark.slow
def test_preference_arms_learn_from_pairs_that_the_judge_ranked(bundle, tmp_path, monkeypatch):
    chosen = ("pictures", "clips")
    arms = trained("preference", "dpo", chosen, bundle, tmp_path, monkeypatch)
    assert set(arms["pictures"]) == {"t2i"} and set(arms["clips"]) == {"i2v"}
    own = bundles.read(bundle.folder)
    for arm, stage, name in (("pictures", "t2i", "spatial"), ("clips", "i2v", "motion_i2v")):
        before, after = own.load(name), arms[arm][stage][name]
        moved = jax.tree.map(lambda a, b: float(np.abs(np.float32(a) - b).max()), before, after)
        assert max(jax.tree.leaves(moved)) > 0
    pairs = list((tmp_path / "runs" / "arms" / "pairs").glob("*/*.npz"))
    assert len(pairs) == 2
    with np.load(pairs[0]) as held:
        assert (held["margin"] >= 0).all() and held["better"].shape == held["worse"].shape
