"""The tasks of T2I, I2V and V2V on the smoke recipe's networks, without compiling them."""

import dataclasses
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mv2_jax import params as trees
from mv2_jax.config import SparseControlConfig, to_dict
from mv2_jax.configs import smoke
from mv2_jax.configs import vfi as videos_recipe
from mv2_jax.configs.toybox import dpo as dpo_recipe
from mv2_jax.configs.toybox import vfi as vfi_recipe
from mv2_jax.errors import InputError
from mv2_jax.models.vae import AutoencoderKL
from mv2_jax.stages import stage
from mv2_jax.toybox import captions
from mv2_jax.toybox.vocabulary import MOTIONS
from mv2_jax.train import words
from mv2_jax.train.task import Component
from mv2_jax.train.tasks import i2v, t2i, v2v, vfi
from mv2_jax.train.toybox import dpo, prompts
from mv2_jax.train.toybox.source import Toybox
from mv2_jax.train.video import VideoTask

INIT = stage.init
TREES = ("text_encoder", "spatial", "motion", "image_encoder", "image_attn", "control")


def zeros(shapes):
    return jax.tree.map(lambda s: np.zeros(s.shape, np.float16), shapes)


@cache
def recipe():
    return smoke.get_config()


@cache
def parts():
    """Every component, all zeros: enough for shapes, names and what is frozen."""
    text = words.fit(smoke.TEXT, Toybox({}, 0).tokenizer(smoke.TEXT.max_length))
    vae = jax.eval_shape(
        AutoencoderKL(smoke.VAE).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    )
    networks = {
        "text_encoder": text,
        "image_encoder": smoke.VISION,
        "image_attn": smoke.PROJECTION,
        "control": smoke.CONTROL,
    }
    net = stage.build("i2v", smoke.NETWORKS["i2v"], networks, smoke.VAE.factor)
    trees = jax.eval_shape(lambda key: INIT(net, key), jax.random.key(0))
    configs = {
        "text_encoder": text,
        "spatial": smoke.SPATIAL,
        "motion": smoke.MOTION,
        "image_encoder": smoke.VISION,
        "image_attn": smoke.PROJECTION,
        "control": smoke.CONTROL,
    }
    found = {name: Component(zeros(trees[name]), configs[name]) for name in TREES}
    found["motion_i2v"] = found.pop("motion")
    return {**found, "vae": Component(zeros(vae["params"]), smoke.VAE)}


def nothing(net, key, held):
    """In place of stages.init: the same trees, all zeros, without compiling anything."""
    return zeros(jax.eval_shape(lambda k: INIT(net, k), key))


def first_phases():
    return {name: parts()[name] for name in ("vae", "text_encoder", "spatial")}


def shapes_of(task, batch):
    key = jax.random.key(0)
    weights = jax.eval_shape(task.init, key)
    return jax.eval_shape(task.loss, weights, task.frozen, batch, key)


def test_t2i_learns_first_frames_at_two_sizes_with_captions_that_fit(tmp_path):
    cfg = recipe().phases.t2i
    task = t2i.make(cfg, {"vae": parts()["vae"]}, tmp_path / "t2i")
    stream = task.batches(0, 0)
    batches = [next(stream) for _ in range(2)]
    assert [b["latent"].shape for b in batches] == [(4, 8, 8, 8), (4, 6, 6, 8)]
    again = next(task.batches(0, 1))
    assert np.array_equal(again["ids"], batches[1]["ids"])
    loss, metrics = shapes_of(task, batches[0])
    assert loss.shape == () and "mse" in metrics
    assert set(jax.eval_shape(task.init, jax.random.key(0))) == {"text_encoder", "spatial"}
    assert task.notes["stages"]["t2i"] == to_dict(smoke.NETWORKS["t2i"])


def test_captions_say_what_the_labels_say():
    labels = np.array(prompts.examples(40))
    said = prompts.draw(labels, seed=0, step=3)
    assert [captions.indices(captions.parse(text)) for text in said] == [*map(tuple, labels)]
    assert said == prompts.draw(labels, 0, 3) and said != prompts.draw(labels, 0, 4)
    known = Toybox({}, 0).tokenizer(smoke.TEXT.max_length)
    assert not any(known.unknown(text) for text in said)


def test_i2v_trains_its_own_trees_on_clips_and_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr("mv2_jax.train.video.stages.init", nothing)
    cfg = recipe().phases.i2v
    task = i2v.make(cfg, first_phases(), tmp_path / "i2v")
    weights = task.init(jax.random.key(0))
    assert set(weights) == {"text_encoder", "motion", "image_encoder", "image_attn", "control"}
    assert set(task.frozen) == {"spatial", "vae"}
    # A mesh takes its shares from the host: no device need hold all.
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves((weights, task.frozen)))
    assert trees.digest(task.frozen["spatial"]) == trees.digest(
        trees.cast(parts()["spatial"].params, np.float32)
    )
    stream = task.batches(0, 0)
    batches = [next(stream) for _ in range(2)]
    assert [b["latent"].shape for b in batches] == [(4, 4, 6, 6, 8), (4, 1, 6, 6, 8)]
    assert all(b["image"].shape == (4, 96, 96, 3) for b in batches)
    for batch in batches:
        assert shapes_of(task, batch)[0].shape == ()
    assert set(task.components(weights)) == {
        "text_encoder", "motion_i2v", "image_encoder", "image_attn", "control"
    }  # fmt: skip
    assert set(task.configs(weights)) == set(task.components(weights))


@pytest.mark.parametrize("every, batch", [(4, 4), (2, 4), (0, 4), (4, 3)])
def test_every_epoch_shows_all_clips_and_all_pictures(tmp_path, monkeypatch, every, batch):
    monkeypatch.setattr("mv2_jax.train.video.stages.init", nothing)
    cfg = smoke.get_config().phases.i2v  # of 16 clips
    cfg.batch = batch
    cfg.data.update(image_every=every, image_batch=8, decoded=0.0)
    video_task, asked = VideoTask("i2v", cfg, first_phases(), tmp_path / "i2v"), []

    def take(numbers):
        asked.append(numbers)
        shape = (len(numbers), 4, 1, 1, 1)
        return {"latent": np.zeros(shape), "label": np.zeros((len(numbers), 4), int)}

    first = lambda numbers, frames, size: (np.zeros((len(numbers), 1)), {})  # noqa: E731
    monkeypatch.setattr(video_task.source, "clips", first)
    monkeypatch.setattr(video_task, "shards", lambda: SimpleNamespace(take=take))
    stream = video_task.batches(0, 0)
    lengths = [next(stream)["latent"].shape[1] for _ in range(64)]
    clips = np.concatenate([n for n, frames in zip(asked, lengths) if frames == 4])
    assert len(clips) >= 64
    for epoch in range(len(clips) // 16):
        assert sorted(clips[16 * epoch : 16 * epoch + 16]) == list(range(16))
    assert lengths.count(1) == (64 // every if every else 0)
    if every:
        pictures = np.concatenate([n for n, frames in zip(asked, lengths) if frames == 1])
        assert all(sorted(part) == list(range(16)) for part in pictures.reshape(-1, 16))
        assert pictures[16:32].tolist() != clips[16:32].tolist()
    later = video_task.batches(0, 39)  # a resumed run sees what the whole one saw
    assert [next(later)["latent"].shape[1] for _ in range(5)] == lengths[39:44]
    assert all(np.array_equal(a, b) for a, b in zip(asked[64:], asked[39:44], strict=True))


def test_clips_are_of_the_motions_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("mv2_jax.train.video.stages.init", nothing)
    cfg = smoke.get_config().phases.i2v  # not the shared one: it is changed here
    folders = set()
    for motions in ({}, {name: float(name == "spinning") for name in MOTIONS}):
        cfg.data.motions = motions
        shards = VideoTask("i2v", cfg, first_phases(), tmp_path / "i2v").shards()
        folders.add(shards.folder)
        motion = shards.take(np.arange(4))["label"][:, 3]
        assert (motion == MOTIONS.index("spinning")).all() == bool(motions)
    assert len(folders) == 2


def test_a_sparse_control_is_shown_the_references_latent(tmp_path, monkeypatch):
    monkeypatch.setattr("mv2_jax.train.video.stages.init", nothing)
    motion = dataclasses.replace(smoke.MOTION, attentions=1, mid_block=False)
    body = dataclasses.replace(smoke.SPATIAL, motion=motion)
    control = SparseControlConfig(body, smoke.VAE.latent_channels)
    cfg = smoke.get_config().phases.i2v
    cfg.model.control = ConfigDict(to_dict(control))
    # An encoder whose latents are no zeros, so that they are told from nothing.
    encoder = jax.tree.map(lambda x: x + np.float16(0.1), parts()["vae"].params)
    begin = {**first_phases(), "vae": Component(encoder, smoke.VAE)}
    task = i2v.make(cfg, begin, tmp_path / "i2v")
    assert shapes_of(task, next(task.batches(0, 0)))[0].shape == ()
    seen = []

    def sample(params, net, asked, reference, *rest, **more):
        seen.append((asked["reference"], reference))
        return np.zeros((6, *net.latent_shape), np.float32)

    monkeypatch.setattr("mv2_jax.train.video.i2v.sample", sample)
    weights = task.init(jax.random.key(0))
    task.sample(weights, task.frozen, jax.random.key(0))
    ((shown, reference),) = seen
    assert np.abs(reference).max() > 0
    assert np.array_equal(shown, reference)


def test_v2v_begins_from_i2v_and_trains_its_motion_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("mv2_jax.train.video.stages.init", nothing)
    ones = jax.tree.map(np.ones_like, parts()["motion_i2v"].params)
    begin = {**parts(), "motion_i2v": Component(ones, smoke.MOTION)}
    task = v2v.make(recipe().phases.v2v, begin, tmp_path / "v2v")
    weights = task.init(jax.random.key(0))
    assert set(weights) == {"motion"} and set(task.components(weights)) == {"motion_v2v"}
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(weights))


def test_what_is_missing_or_unknown_is_named(tmp_path):
    with pytest.raises(InputError, match=r"needs the component 'vae'.*toybox/vae"):
        t2i.make(recipe().phases.t2i, {}, tmp_path)
    with pytest.raises(InputError, match="needs the component 'image_encoder'"):
        v2v.make(recipe().phases.v2v, first_phases(), tmp_path)
    cfg = smoke.get_config().phases.i2v
    cfg.train = ("motoin",)
    with pytest.raises(InputError, match="did you mean 'motion'"):
        VideoTask("i2v", cfg, first_phases(), tmp_path)
    cfg = smoke.get_config().phases.i2v
    cfg.data.motions = {"spining": 2.0}
    with pytest.raises(InputError, match=r"data.motions: .*did you mean 'spinning'"):
        VideoTask("i2v", cfg, first_phases(), tmp_path)
    cfg = smoke.get_config().phases.t2i
    cfg.data.sizes = (100,)
    with pytest.raises(InputError, match="100 is not a multiple of 16"):
        t2i.make(cfg, {"vae": parts()["vae"]}, tmp_path)


@pytest.mark.parametrize(
    "data, says",
    [
        ({"chunk": 3}, "3 at a time do not divide a shard of 128"),
        ({"chunk": 0}, "0 at a time"),
        ({"candidates": 1}, "a pair takes two at least, not 1"),
    ],
)
def test_pairs_whose_numbers_do_not_go_together_are_told(tmp_path, data, says):
    cfg = dpo_recipe.get_config().phases.pictures
    cfg.data.update(data)
    with pytest.raises(InputError, match=says):
        dpo.make(cfg, {}, tmp_path)


@pytest.mark.parametrize("of_videos", [True, False])
def test_a_gap_with_no_frame_between_is_told(tmp_path, of_videos):
    cfg = (videos_recipe if of_videos else vfi_recipe).get_config().phases.vfi
    begin = {"vae": parts()["vae"]}
    says = "frames, 2 or more" if of_videos else "shares of a clip"
    for gap in ((1, 4), (6, 2), (3,)) if of_videos else ((1, 4), (0.2, 0.1), (0.0, 0.1)):
        cfg.data.gap = gap
        with pytest.raises(InputError, match=rf"data\.gap: .* {says}"):
            vfi.make(cfg, begin, tmp_path)
    cfg.data.gap = (2, 4) if of_videos else (0.05, 1)
    if of_videos:
        cfg.data.root = str(tmp_path / "nowhere")
        with pytest.raises(InputError, match="there is no folder"):
            vfi.make(cfg, begin, tmp_path)
