"""A condition from outside the package: trained, planned, stored, reloaded, told by a command."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mv2_jax import bundle, cascade, cli
from mv2_jax.diffusion import keys
from mv2_jax.errors import InputError
from mv2_jax.infer import machines, media
from mv2_jax.infer.planning import estimate, recorded, sources
from mv2_jax.stages import stage as stages
from mv2_jax.train import cli as training
from mv2_jax.train import recipe

PROMPT = ["a red ball"]


@pytest.fixture(scope="module")
def own():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "examples")
        yield importlib.import_module("own_condition").Brightness(width=8)


@pytest.fixture(scope="module")
def four(own):
    made = tiny.make().with_stage("t2i", conditions=("text", own))
    tree = {"kernel": np.ones((4, 32), np.float32), "bias": np.zeros(32, np.float32)}
    return dataclasses.replace(made, params={**made.params, "brightness": tree})


@pytest.fixture(scope="module")
def folder(four, own, tmp_path_factory):
    """A cascade folder in which it stands."""
    held = tiny.write(tmp_path_factory.mktemp("plain") / "c", four)
    parts = {
        name: bundle.Part(held.load(name), part.config, part.licence, part.source)
        for name, part in held.components.items()
    }
    parts["brightness"] = bundle.Part(four.params["brightness"], own, "Apache-2.0", "a test")
    told = dataclasses.replace(held.stages["t2i"], conditions=("text", own))
    where = tmp_path_factory.mktemp("own") / "c"
    stored = {**held.stages, "t2i": told}
    return bundle.write(where, parts, stored, held.tokenizer, name="own", defaults=held.defaults)


def test_its_place_in_a_stage(four, own):
    cfg = four.picture
    assert cfg.trees == ("text_encoder", "brightness", "spatial") and cfg.inputs >= {"brightness"}
    assert stages.configs(cfg)["brightness"] is own
    fresh = jax.eval_shape(lambda key: stages.init(cfg, key), keys.seed(0))
    assert fresh["brightness"]["kernel"].shape == (4, 32)
    with pytest.raises(ValueError, match="t2i's condition 'brightness' needs 'brightness'"):
        four.t2i(PROMPT, keys=keys.seeds([1]))


def test_it_is_found_by_name_and_what_is_none_is_refused(four, own):
    own = type(own)
    made = four.with_stage("t2i", conditions=("text", "own_condition:Brightness"))
    assert made.picture.conditions[1] == own()
    text = {"text_encoder": four.picture.condition("text").first}
    stage = dataclasses.replace(four.picture.stage, conditions=("text", "own_condition:Brightness"))
    assert stages.build("t2i", stage, text, 8).conditions[1] == own()
    for wanted, message in (
        ("txt", r"unknown condition 'txt' \(known: text, image, control\); did you mean 'text'"),
        ("own_condition:Brightnes", "own_condition has no 'Brightnes'; did you mean 'Brightness'"),
        (own, r"Brightness is a class; a condition is Brightness\(...\)"),
        (3, "int is no condition: it lacks name, role"),
    ):
        stage = dataclasses.replace(stage, conditions=(wanted,))
        with pytest.raises(InputError, match=message):
            stages.build("t2i", stage, text, 8)


def test_training_reaches_it(four):
    cfg, params = four.picture, four.parameters("t2i")
    ids, nothing = four.ids(PROMPT * 2)
    batch = {"latent": jnp.ones((2, 6, 6, 4)), "ids": ids, "null_ids": nothing[0]}
    batch["brightness"] = jnp.asarray([0.36, 0.5])

    def loss(own, rate):
        whole, rates = {**params, "brightness": own}, {"drop_text": 0.0, "drop_brightness": rate}
        return stages.loss(whole, cfg, batch, keys.seed(1), rates=rates)[0]

    slope = jax.jit(jax.grad(loss), static_argnums=1)
    told, dropped = (slope(params["brightness"], rate)["kernel"] for rate in (0.0, 1.0))
    assert np.abs(told).max() > 1e-6 and np.abs(dropped).max() == 0


def test_it_is_planned(folder):
    source, numbers = sources.chosen(sources.of_folder(folder.folder, None), {}, {})
    mesh = estimate.abstract(machines.machine("l4"), {})
    programs = recorded.record(source.on(mesh), mesh, numbers, ["t2i"])
    told = {p.name: p.args[1] for p in programs if p.name in ("encoders", "step")}
    assert told["encoders"]["brightness"].shape == (1,)
    assert told["step"]["brightness"].shape == (2, 1, 4, 8)


def test_it_comes_back_from_a_folder_and_is_heard(four, folder, own):
    index = json.loads((folder.folder / "cascade.json").read_text())
    assert index["components"]["brightness"]["config"]["class"] == "own_condition:Brightness"
    again = cascade.load(bundle.read(folder.folder))
    assert again.picture.conditions[1] == own

    def made(radius):
        picture = again.t2i(PROMPT, keys=keys.seeds([1]), steps=1, more={"brightness": [radius]})
        return np.asarray(picture)

    assert np.abs(made(0.3) - made(0.6)).max() > 1e-4


def test_a_command_tells_it(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = "--t2i-steps 1 --i2v-steps 1 --v2v-steps 1".split()
    words = ["generate", *PROMPT, "--weights", str(folder.folder), *steps]
    assert cli.main([*words, "-o", "a.mp4", "--tell", "brightness=0.3"]) == 0
    side = json.loads(Path("a.json").read_text())
    assert side["tell"] == {"brightness": "0.3"}
    capsys.readouterr()
    for said, message in (
        ("siz=0.3", "--tell siz: these weights have no such condition; it has brightness"),
        ("brightness=big", "--tell brightness=big: could not convert"),
        ("brightness", "--tell takes NAME=VALUE, not 'brightness'"),
    ):
        assert cli.main([*words, "-o", "b.mp4", "--tell", said]) == 2
        assert message in capsys.readouterr().err


RECIPE = """
import dataclasses
import numpy as np
import own_data
import tiny
from own_condition import Brightness
from mv2_jax.config import to_dict
from mv2_jax.train.phase import packing, phase, recipe

class Bright(own_data.Folder):  # pictures, and how bright each is
    def read(self, numbers, frames, size):
        clips, notes = super().read(numbers, frames, size)
        return clips, {{**notes, "brightness": np.float32(clips.mean((1, 2, 3, 4)))}}

def get_config():
    stage = dataclasses.replace(tiny.PICTURE, conditions=("text", Brightness(width=8)))
    given = dict.fromkeys(("vae", "text_encoder", "spatial"), {weights!r})
    data = {{"source": "bright:Bright", "root": {root!r}, "count": 4, "shard": 4, "sizes": (48,)}}
    learnt = phase(
        "t2i", begin=given, steps=2, batch=2, log_every=1, data=data,
        model={{"t2i": to_dict(stage)}},
        loss={{"drop_text": 0.1, "drop_brightness": 0.1, "shape": {{"class": "LossConfig"}}}},
        sample={{"guidance": 2.0, "steps": 1}}, ema={{"decay": 0.0}},
        optim={{"lr": 1e-2, "warmup": 0}},
    )
    made = recipe(packing(sources=({weights!r},), name="bright"), learnt=learnt)
    made.quick_compile = True
    return made
"""


@pytest.mark.slow
def test_a_recipe_trains_it_and_the_packed_cascade_hears_it(own, tmp_path, monkeypatch, capsys):
    """From a recipe to a command, with a data source of one's own that notes what it is told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    given, root = tmp_path / "given", tmp_path / "pictures"
    before = tiny.make()
    tiny.write(given, before)
    root.mkdir()
    for number, level in enumerate((40, 200)):
        media.write_image(root / f"{number}.png", np.full((48, 48, 3), level, np.uint8))
        (root / f"{number}.txt").write_text("a red ball\n")
    Path("bright.py").write_text(RECIPE.format(weights=str(given), root=str(root)))
    assert training.main("bright.py", [], out="runs") == 0

    listed = json.loads(Path("runs/bright/learnt/weights/phase.json").read_text())["components"]
    assert listed["brightness"]["config"]["class"] == "own_condition:Brightness"
    held = recipe.components_in(Path("runs/bright/learnt/weights"))
    fresh = own.init(before.picture, keys.seed(0), None, None, None, {})["brightness"]
    assert held["brightness"].params["kernel"].shape == fresh["kernel"].shape

    four = cascade.load(bundle.read("runs/bright/cascade"))
    assert four.picture.trees == ("text_encoder", "brightness", "spatial")
    call = {"keys": keys.seeds([1]), "steps": 1}
    dark, light = (four.t2i(PROMPT, **call, more={"brightness": [b]}) for b in (-0.6, 0.6))
    assert np.abs(dark - light).max() > 1e-5
    steps = "--t2i-steps 1 --i2v-steps 1 --v2v-steps 1".split()
    words = ["generate", *PROMPT, "--weights", "runs/bright/cascade", *steps]
    assert cli.main([*words, "-o", "a.mp4", "--tell", "brightness=-0.6"]) == 0
    # And planned, by the command.
    plan = ["plan", "t2i", "--on", "l4", "--quick", "--weights", "runs/bright/cascade"]
    assert cli.main(plan) == 0
