"""A cascade folder of values from outside the package: planned for a mesh, and made videos with."""

import dataclasses
import importlib
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from mv2_jax import bundle, cascade, cli, sharding
from mv2_jax.diffusion import guidance, keys
from mv2_jax.infer import media
from mv2_jax.stages import chain, i2v, stage, t2i

FOLDER = Path(__file__).parents[2] / "examples"
PROMPT = ["a red ball"]
STARTS = {"t2i": t2i.start, "i2v": i2v.start}
QUICK = "--t2i-steps 2 --i2v-steps 1 --v2v-steps 1".split()


@pytest.fixture(scope="module", autouse=True)
def path():
    """PYTHONPATH names the examples' folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """T2I over a process, with a sampler, a rule and a condition of one's own; I2V with a backbone
    and a condition besides."""
    process = importlib.import_module("own_process").Circle()
    own = {"schedule": process, "sampler": "own_sampler:plms2"}
    bright = importlib.import_module("own_condition").Brightness(width=8)
    dit = importlib.import_module("video_dit.backbone")
    network = dit.VideoDiT(in_channels=4, frames=3, width=24, depth=1, heads=2)
    told = ("text", "image", dit.Reference())
    made = {
        "t2i": dataclasses.replace(
            tiny.PICTURE, **own, conditions=("text", bright), rule="own_guidance:PROJECTED"
        ),
        "i2v": dataclasses.replace(tiny.KEYFRAMES, **own, conditions=told, unet=network),
        "v2v": tiny.REFINED,
    }
    trees = jax.eval_shape(partial(stage.init, tiny.stage(made["i2v"])), keys.seed(0))
    plain = tiny.write(tmp_path_factory.mktemp("plain") / "c", tiny.make())
    parts = {
        name: bundle.Part(plain.load(name), part.config, part.licence, part.source)
        for name, part in plain.components.items()
    }
    tree = {"kernel": np.ones((4, 32), np.float32), "bias": np.zeros(32, np.float32)}
    parts["brightness"] = bundle.Part(tree, bright, "Apache-2.0", "a test")
    parts["dit_i2v"] = bundle.Part(tiny.random(trees["dit"], 5), network, "Apache-2.0", "a test")
    where = tmp_path_factory.mktemp("own") / "c"
    bundle.write(where, parts, made, plain.tokenizer, name="own", defaults=plain.defaults)
    return where


def shapes(cfg, name, mesh):
    """What one chain of two clips is made of, as shapes that lie on a mesh."""
    tree = jax.eval_shape(partial(stage.init, cfg), keys.seed(0))
    weights = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        sharding.shardings(tree, mesh, stage.rules(cfg)),
    )
    inputs, each = jax.eval_shape(lambda: (stage.blank(cfg, 2), keys.seeds([0, 1])))
    condition = partial(stage.condition, cfg=cfg, rule=cfg.rule)
    conditioning = jax.eval_shape(condition, tree, inputs)
    begun = () if name == "t2i" else (inputs["reference"], np.float32(0))
    state = jax.eval_shape(partial(STARTS[name], cfg=cfg, steps=2), each, *begun)
    return weights, conditioning, guidance.make(3.0), state


@pytest.mark.parametrize("name", STARTS)
def test_a_whole_chain_is_planned_for_a_mesh(folder, name):
    """From the folder's index alone, without a weight; parameters by their own rows of axes."""
    cfg = cascade.stage_of(bundle.read(folder), name)
    mesh = sharding.make_mesh(fsdp=2, context=2, devices=jax.devices()[:4])
    rows = shapes(cfg, name, mesh)
    with jax.set_mesh(mesh):
        planned = chain.advance.lower(*rows, cfg=cfg, rule=cfg.rule, steps=2)
        memory = planned.compile().memory_analysis()
    assert planned.out_info.x.shape == (2, *cfg.latent_shape)
    whole = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(stage.at_steps(rows[0], cfg))
    )
    assert 0 < memory.argument_size_in_bytes < 0.9 * whole


def test_a_command_makes_a_video_of_it_and_the_same_again(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["generate", *PROMPT, "--weights", str(folder), *QUICK, "--tell", "brightness=0.3"]
    assert cli.main([*words, "-o", "a.mp4", "--stages"]) == 0
    four = cascade.load(bundle.read(folder))
    call = {"keys": keys.seeds([0]), "more": {"brightness": [0.3]}}
    picture = media.to_uint8(four.t2i(PROMPT, steps=2, **call))[0]
    (kept,) = tmp_path.glob("a*reference*.png")
    assert np.array_equal(media.read_image(kept, picture.shape[:2]), picture)
    assert cli.main(["generate", "--from", "a.json", "-o", "b.mp4"]) == 0
    first, again = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json"))
    assert first["result"] == again["result"]
    # Each of them is heard: with another in its place the picture is another.
    for change in ({"sampler": "ddim"}, {"schedule": tiny.SCHEDULE}):
        other = four.with_stage("t2i", **change).t2i(PROMPT, steps=2, **call)
        assert not np.array_equal(media.to_uint8(other)[0], picture), change
