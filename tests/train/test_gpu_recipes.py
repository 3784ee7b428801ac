"""The recipes for one GPU, rehearsed at a hundredth of their size: a card then teaches weights and
nothing else."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mv2_jax import bundle
from mv2_jax.config import to_dict
from mv2_jax.configs import smoke
from mv2_jax.configs.storybox import sizes as storybox
from mv2_jax.configs.toybox import sizes as toybox
from mv2_jax.errors import InputError
from mv2_jax.models.vae import AutoencoderKL
from mv2_jax.stages import stage as stages
from mv2_jax.train import cli, loop, recipe, within
from mv2_jax.train.data import stacked

from .regression import config, task

WORLDS = ("toybox", "storybox")


def tiny(world, phases):
    """The world's recipe with its first phases of each task, on networks of nothing."""
    _, made = recipe.load(f"{world}/gpu")
    networks = {**smoke.NETWORKS}
    text = storybox.TEXT if world == "storybox" else toybox.TEXT
    networks["text"] = dataclasses.replace(smoke.TEXT, max_length=text.max_length)
    made.order = phases
    for name in phases:
        phase = made.phases[name]
        calls = min(2, phase.steps_per_call)
        phase.update(steps=4, batch=2, steps_per_call=calls, log_every=2, max_minutes=0.0)
        phase.update(precision="fp32", checkpoint_minutes=0.0)
        phase.optim.update(warmup=1, clock="steps")
        for part in phase.model:
            phase.model[part] = ConfigDict(to_dict(networks[part]))
        if "sizes" in phase.data:
            phase.data.sizes = (64,)
        if "views" in phase.data:
            phase.data.views = ("64/32",)
        if "sample" in phase:
            phase.sample.steps = 2
        for stage in ("i2v", "v2v"):
            if stage in phase.model:
                phase.model[stage].update(size=(64, 64), frames=2)
    made.quick_compile = True
    return made


@pytest.mark.long
@pytest.mark.parametrize("world", WORLDS)
def test_a_recipe_for_a_gpu_trains_and_packs_a_cascade(world, tmp_path, monkeypatch):
    made = tiny(world, ("vae1", "t2i1", "i2v1", "v2v"))
    monkeypatch.setattr(recipe, "load", lambda name: (name, made))
    assert cli.main(f"{world}/gpu", [], out=str(tmp_path)) == 0
    folder = tmp_path / world / "gpu"
    for name in made.order:
        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        logged = [json.loads(line) for line in lines]
        assert logged[-1]["step"] == 4
        assert all(np.isfinite(line["loss"]) for line in logged)
    packed = bundle.read(folder / "cascade")
    assert packed.name == world
    assert {"spatial", "motion_i2v", "motion_v2v", "control", "vae"} <= packed.components.keys()
    assert not (folder / "latents").exists()  # nothing was kept: worlds are rendered in the step


@pytest.mark.parametrize("world", WORLDS)
def test_phases_fit_the_clock(world):
    _, made = recipe.load(f"{world}/gpu")
    for phase in made.phases.values():
        assert phase.max_minutes < 8
        assert phase.checkpoint_minutes == 1
        assert phase.precision == "bf16"
        assert phase.steps % phase.steps_per_call == 0
        if phase.task != "vae":
            assert phase.data.within and phase.steps_per_call > 1


def test_weights_fit_the_files():
    sizes = storybox
    networks = {
        "text_encoder": dataclasses.replace(sizes.TEXT, vocab_size=400),
        "image_encoder": sizes.VISION,
        "image_attn": sizes.PROJECTION,
        "control": sizes.CONTROL,
    }
    net = stages.build("i2v", sizes.I2V, networks, sizes.VAE.factor)
    shapes = jax.eval_shape(lambda key: stages.init(net, key), jax.random.key(0))
    image = jnp.zeros((1, 64, 64, 3))
    shapes["vae"] = jax.eval_shape(AutoencoderKL(sizes.VAE).init, jax.random.key(0), image)
    for name, tree in shapes.items():
        assert 2 * sum(leaf.size for leaf in jax.tree.leaves(tree)) < 15e6, name


def test_many_steps_of_a_call_are_those_steps(tmp_path):
    def run(name, calls):
        cfg = config(steps=8, log_every=4, steps_per_call=calls)
        return loop.run(task(), cfg, tmp_path / name)

    one, many = run("one", 1), run("many", 4)
    assert int(many.state.step) == 8
    for a, b in zip(jax.tree.leaves(one.state), jax.tree.leaves(many.state)):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("one", "many")]
    last = [json.loads(text.splitlines()[-1])["loss"] for text in lines]
    assert last[0] == pytest.approx(last[1], rel=1e-4)


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"steps": 9, "steps_per_call": 2}, "multiple"), ({"steps_per_call": 0}, "1 or more")],
)
def test_steps_that_make_no_calls_are_refused(changed, says, tmp_path):
    with pytest.raises(InputError, match=says):
        loop.run(task(), config(**changed), tmp_path)


def test_batches_that_differ_are_not_stacked():
    batches = iter([{"x": np.zeros((2, size))} for size in (3, 3, 4, 3)])
    many = stacked(batches, 2)
    assert next(many)["x"].shape == (2, 2, 3)
    with pytest.raises(InputError, match="steps_per_call"):
        next(many)


def test_only_what_is_rendered_is_made_within_the_step():
    _, made = recipe.load("toybox/gpu")

    class Read:
        traced = False

    with pytest.raises(InputError, match=r"data\.within"):
        within.asked(made.phases.t2i1.data, Read())
