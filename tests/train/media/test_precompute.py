"""Training on precomputed samples equals training on the source, within half precision."""

import itertools
import json

import jax
import media_clips
import numpy as np
import pytest

from mv2_jax.cli import main
from mv2_jax.errors import InputError
from mv2_jax.train import cascades, recipe
from mv2_jax.train.media.settings import data
from mv2_jax.train.tasks.t2i import PictureTask
from mv2_jax.train.video import VideoTask

SETTINGS = ("crop=random", "flip=0.5", "image_every=3", "image_batch=2", "caption_rows=2")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    return media_clips.cascade(folder / "cascade"), media_clips.clips(folder / "clips", 3, 2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def made(given, out, *more, stage="i2v"):
    start, clips = given
    asked = ["precompute", str(clips), "-o", str(out), "--cascade", str(start), "--stage", stage]
    return main(
        [*asked, "--set", *SETTINGS, "--passes", "2", "--shard", "3", "--batch", "2", *more]
    )


def task(given, stage, folder, **settings):
    start, clips = given
    cfg = recipe.load(f"own/{stage}")[1].phases[stage]
    with cfg.unlocked():
        cfg.data = data(**{
            "root": str(clips), "passes": 2, "crop": "random", "flip": 0.5, "image_every": 3,
            "image_batch": 2, "caption_rows": 2, **settings,
        })  # fmt: skip
        cfg.batch, cfg.cascade, cfg.remat = 2, str(start), False
    cascades.complete(cfg)
    begin = cascades.parts(recipe.components_in(start), pictures=stage == "t2i")
    own = (
        PictureTask(cfg, begin, folder) if stage == "t2i" else VideoTask(stage, cfg, begin, folder)
    )
    return own.task()


@pytest.mark.parametrize("stage", ["i2v", pytest.param("t2i", marks=pytest.mark.slow)])
def test_training_on_it_equals_training_on_the_source(given, stage, tmp_path):
    assert made(given, tmp_path / "kept", stage=stage) == 0
    live = task(given, stage, tmp_path)
    kept = task(given, stage, tmp_path, source="precomputed", root=str(tmp_path / "kept"))
    weights = live.init(jax.random.key(0))
    loss = jax.jit(live.loss)
    read = jax.jit(kept.loss)
    differences = []
    for step, (one, other) in enumerate(
        itertools.islice(zip(live.batches(5, 0), kept.batches(5, 0)), 7)
    ):
        np.testing.assert_array_equal(one["ids"], other["ids"])
        assert "pixels" not in other and other["latent"].shape[0] == 2
        key = jax.random.key(step)
        expected = loss(weights, live.frozen, one, key)[0]
        found = read(weights, kept.frozen, other, key)[0]
        differences.append(abs(float(found - expected)) / float(expected))
    # Half precision keeps 11 bits; what is told in it is averaged over many numbers.
    assert max(differences) < 2**-10, differences
    assert max(differences) > 0  # these are not the same program
    later = next(kept.batches(5, 5))
    np.testing.assert_array_equal(later["latent"], other_at(kept, 5)["latent"])


def other_at(kept, step):
    return next(itertools.islice(kept.batches(5, 0), step, None))


@pytest.mark.slow
def test_it_goes_on_and_is_shared_among_processes(given, tmp_path, capsys):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert made(given, whole) == made(given, shared, "--part", "1/2") == 0
    names = sorted(path.name for path in shared.glob("*.array_record"))
    assert names and len(names) < len(list(whole.glob("*.array_record")))
    with pytest.raises(InputError, match=r"parts of .* are missing: run mv2 precompute again"):
        task(given, "i2v", tmp_path, source="precomputed", root=str(shared))
    # As if it had been killed between a part and its note.
    (shared / names[0]).with_suffix(".json").unlink()
    assert made(given, shared) == 0
    for path in whole.glob("*.json"):
        assert json.loads(path.read_text()) == json.loads((shared / path.name).read_text())
    one, other = (
        next(task(given, "i2v", tmp_path, source="precomputed", root=str(f)).batches(0, 0))
        for f in (whole, shared)
    )
    assert all(np.array_equal(one[name], other[name]) for name in one)
    capsys.readouterr()
    made(given, whole)
    assert "0 samples made" in capsys.readouterr().out


@pytest.mark.slow
def test_what_does_not_fit_is_refused(given, tmp_path):
    made(given, tmp_path / "kept")
    kept = {"source": "precomputed", "root": str(tmp_path / "kept")}
    clips = given[1]
    with pytest.raises(InputError, match=r"has 3 frames of 32x32, 1 frames.*this phase sees 3"):
        task(given, "i2v", tmp_path, **kept, image_every=0)
    with pytest.raises(InputError, match=r"has captions in 2 rows: set data.caption_rows=2"):
        task(given, "i2v", tmp_path, **kept, caption_rows=1)
    other = media_clips.cascade(tmp_path / "other", text=9)
    with pytest.raises(InputError, match=r"made by another text_encoder than"):
        task((other, clips), "i2v", tmp_path, **kept)
    with pytest.raises(InputError, match="no folder that mv2 precompute made"):
        task(given, "i2v", tmp_path, source="precomputed", root=str(tmp_path))
    assert made(given, tmp_path / "kept", "--passes", "1") == 2  # told by the command
    assert made(given, tmp_path / "new", "--part", "2/2") == 2
