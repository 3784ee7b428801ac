"""A data source, a loss and a task from outside the package: trained, saved, reloaded, used."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from PIL import Image

from mv2_jax import bundle, cascade, cli, params
from mv2_jax.config import to_dict
from mv2_jax.diffusion import keys
from mv2_jax.errors import InputError
from mv2_jax.infer import interpolators
from mv2_jax.text import WordTokenizer
from mv2_jax.train import encoded, recipe
from mv2_jax.train import source as sources
from mv2_jax.train.phase import phase
from mv2_jax.train.task import Component

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def path(monkeypatch):
    """PYTHONPATH names the examples' folder."""
    monkeypatch.syspath_prepend(FOLDER)


@pytest.fixture
def pictures(tmp_path):
    """Three pictures, each of one level, with two captions each."""
    root = tmp_path / "pictures"
    root.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        level = np.full((40, 40, 3), 50 + 80 * number, np.uint8)
        Image.fromarray(level).save(root / f"{number}.png")
        (root / f"{number}.txt").write_text(f"a {colour} ball\na {colour} cube over a meadow\n")
    return root


def settings(root, **more):
    data = {"source": "own_data:Folder", "root": str(root), "count": 8, "shard": 4, "sizes": (48,)}
    return ConfigDict({"seed": 3, "batch": 3, "data": {**data, **more}})


def test_numbers_name_samples_and_steps_name_captions(pictures):
    source = sources.of(settings(pictures))
    clips, notes = source.clips(np.array([4, 0, 2]), 2, (16, 24))  # 4 goes round to 1
    assert clips.shape == (3, 2, 16, 24, 3) and notes["number"].tolist() == [1, 0, 2]
    np.testing.assert_allclose(
        clips[:, 0, 0, 0, 0], np.array([130, 50, 210]) / 127.5 - 1, atol=1e-6
    )
    drawn = [source.captions(notes, 0, step) for step in range(20)]
    assert all("green" in said[0] and "blue" in said[2] for said in drawn)
    assert {said[1] for said in drawn} == {"a red ball", "a red cube over a meadow"}
    assert drawn[7] == source.captions(notes, 0, 7)
    seen = np.concatenate([source.pick(0, step, 4, 8) for step in range(4)])
    assert sorted(seen[:8]) == sorted(seen[8:]) == list(range(8))
    assert source.pictures(0, 1, 2, 32, 16).shape == (8, 16, 16, 3)
    taken = sources.of(settings(pictures, side=16)).triplets(np.arange(2))
    assert taken["target"].dtype == np.uint8 and taken["target"][1].max() == 130


def test_latents_are_those_of_the_pictures_and_follow_the_files(pictures, tmp_path):
    cfg, four = settings(pictures), tiny.make()
    vae = Component(four.params["vae"], tiny.VAE)

    def made():
        given = {"root": tmp_path / "latents", "data": cfg.data, "chunk": 3, "facts": {"what": "x"}}
        return encoded.shards(sources.of(cfg), vae, None, (16, 16), **given)

    shards = made()
    taken = shards.take(np.arange(8))
    assert taken["number"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert np.array_equal(taken["latent"][1], taken["latent"][4])
    assert not np.array_equal(taken["latent"][0], taken["latent"][1])
    assert made().folder == shards.folder
    (pictures / "0.png").unlink()
    assert made().folder != shards.folder


LOSS = """
import jax.numpy as jnp
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion.losses import asked, per_sample, positions

def absolute(model, x0, keys, process, mask=None):
    point, eps = process.at(positions(keys)), named.normal(named.fold(keys, "noise"), x0.shape[1:])
    wanted, output = asked(model, x0, eps, point, process)
    return per_sample(jnp.abs(output - wanted), mask).mean(), {"mse": jnp.float32(0.25)}
"""

RECIPE = """
import json
from mv2_jax.train.phase import packing, phase, recipe
def get_config():
    told = json.loads({settings!r})
    packed = packing(sources=(told["begin"]["vae"],), name="mine")
    made = recipe(packed, pictures=phase("t2i", **told))
    made.quick_compile = True
    return made
"""


def test_the_command_trains_on_it_with_a_loss_a_process_and_a_sampler_of_ones_own(
    pictures, tmp_path, monkeypatch
):
    """From a recipe file to a cascade folder and to pictures, with the folder's own tokenizer."""
    (tmp_path / "absolute_loss.py").write_text(LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    four = tiny.make()
    tiny.write(tmp_path / "cascade", four)
    begin = dict.fromkeys(("vae", "text_encoder", "spatial"), str(tmp_path / "cascade"))
    circle = importlib.import_module("own_process").Circle()
    stage = dataclasses.replace(tiny.PICTURE, schedule=circle, sampler="own_sampler:plms2")
    phase_of = {
        "begin": begin,
        "steps": 2,
        "batch": 3,
        "log_every": 1,
        "model": {"t2i": to_dict(stage)},
        "data": settings(pictures).data.to_dict(),
        "loss": {"drop_text": 0.1, "shape": "absolute_loss:absolute"},
        "sample": {"guidance": 2.0, "steps": 2},
        "optim": {"lr": 1e-2, "warmup": 0},
        "ema": {"decay": 0.0},
    }
    path = tmp_path / "mine.py"
    path.write_text(RECIPE.format(settings=json.dumps(phase_of)))
    assert cli.main(["train", str(path), "--out", str(tmp_path / "runs")]) == 0
    weights = tmp_path / "runs" / "mine" / "pictures" / "weights"
    logged = (weights.parent / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["mse"] == 0.25 for line in logged)
    held = recipe.components_in(weights)
    assert held["text_encoder"].tokenizer == tiny.WORDS.to_json()
    assert held["text_encoder"].config == tiny.TEXT

    again = cascade.load(bundle.read(tmp_path / "runs" / "mine" / "cascade"))
    assert again.picture.stage.schedule == circle
    assert again.picture.stage.sampler == "own_sampler:plms2"
    before = params.flatten(four.params["spatial"])
    after = params.flatten(again.params["t2i_unet"])  # I2V keeps what it was given
    assert any(np.abs(after[name] - before[name]).max() > 1e-3 for name in before)
    image = again.t2i(["a red ball"], keys=keys.seeds([0]), steps=2, guidance=2.0)
    assert np.isfinite(image).all() and image.shape == (1, 48, 48, 3)


def test_the_source_gives_a_fresh_text_encoder_its_words(pictures):
    from mv2_jax.train import words

    source = sources.of(settings(pictures))
    own = words.tokenizer({}, source, tiny.TEXT)
    assert isinstance(own, WordTokenizer) and not own.unknown("a green cube over a meadow")
    assert own.unknown("snow")
    held = Component({}, tiny.TEXT, tiny.WORDS.to_json())
    assert words.tokenizer({"text_encoder": held}, source, tiny.TEXT).unknown("snow") == []
    small = dataclasses.replace(tiny.TEXT, vocab_size=9)
    with pytest.raises(InputError, match=r"knows .* tokens, and the text encoder .* 9"):
        words.check(small, tiny.WORDS)


def test_what_cannot_serve_is_said(pictures, tmp_path):
    for name, said in (
        ("toyboks", r"unknown data source 'toyboks'.*did you mean 'toybox'"),
        ("own_data:Foldr", "has no 'Foldr'; did you mean 'Folder'"),
        ("own_data:np", "is the module numpy, not a Source"),
    ):
        with pytest.raises(InputError, match=said):
            sources.of(settings(pictures, source=name))
    with pytest.raises(InputError, match=r"no \.png file"):
        sources.of(settings(tmp_path))
    for task, said in (
        ("t2j", r"unknown task 't2j'.*did you mean 't2i'"),
        ("own_task:mak", "has no 'mak'; did you mean 'make'"),
    ):
        cfg = phase(task, data={"root": str(pictures)})
        with pytest.raises(InputError, match=said):
            recipe.make_task(cfg, {}, tmp_path)


def test_a_task_is_trained_saved_and_taken_by_vfi(tmp_path):
    own = importlib.import_module("own_interpolator")
    given = ["steps=3", "batch=2", "data.count=4", "data.size=48"]
    words = ["train", str(FOLDER / "own_task.py"), "--out", str(tmp_path), "--set", *given]
    assert cli.main(words) == 0
    weights = tmp_path / "own_task" / "fade" / "weights"
    tree, cfg = interpolators.load(interpolators.check(str(weights / "vfi_fade.safetensors")))
    assert cfg == own.FadeConfig() and 0 < abs(float(tree["pace"][0])) < 0.1
    (listed,) = json.loads((weights / "phase.json").read_text())["components"].values()
    assert listed["config"]["class"] == "own_interpolator:FadeConfig"
    assert bundle.vfi_table.is_component("vfi_fade")
    frames = jax.random.uniform(jax.random.key(0), (1, 2, 4, 5, 3), minval=-1)
    from mv2_jax.stages import interpolators as networks

    assert networks.interpolate(tree, cfg, frames, 3).shape == (1, 4, 4, 5, 3)
