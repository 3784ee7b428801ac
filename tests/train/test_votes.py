"""Learning from an arena's votes: which pairs they make, and that training begins from them."""

import arena as made
import jax
import media_clips
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from mv2_jax import bundle, cli
from mv2_jax import params as trees
from mv2_jax.config import to_dict
from mv2_jax.configs import preference as recipe
from mv2_jax.errors import InputError
from mv2_jax.infer.arena import build
from mv2_jax.infer.arena.store import CRITERIA
from mv2_jax.train.task import Component
from mv2_jax.train.tasks import votes


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Votes on three prompts: all raters like the first system's video, two of four the second's,
    and half of those who decide; the fifth rater misses the damaged copy."""
    arena = made.arena(tmp_path_factory.mktemp("votes"))
    wanted = dict(zip(made.PROMPTS, ([0, 0, 0, 0], [2, 0, 2, 1], [0, 2, 1, 1])))
    for rater in range(5):
        token = arena.add_rater(100)
        for ballot in arena.ballots(token):
            row = arena.rows("SELECT b.first_left, c.kind, c.prompt FROM ballots b JOIN "
                             "comparisons c ON c.number = b.comparison WHERE b.id = ?",
                             ballot["id"])[0]  # fmt: skip
            gold = row["kind"] == "gold"
            outcome = (0 if rater < 4 else 2) if gold else [*wanted[row["prompt"]], 2][rater]
            sides = ("left", "right") if row["first_left"] else ("right", "left")
            answer = "same" if outcome == 1 else sides[outcome // 2]
            arena.vote(token, ballot["id"], dict.fromkeys(CRITERIA, answer), 1.0, False)
    path = arena.path
    arena.close()
    return path


def level(path):
    return build.read_frames(path)[0].mean()


def test_pairs_are_what_most_raters_who_look_prefer(judged):
    pairs = votes.pairs_of(judged, "overall", 0.0)
    assert [(p.prompt, p.margin) for p in pairs] == [
        (made.PROMPTS[0], 1.0), (made.PROMPTS[1], 0.25)]  # fmt: skip
    assert level(pairs[0].better) < 100 < level(pairs[0].worse)
    assert level(pairs[1].better) > 100 > level(pairs[1].worse)
    assert len(votes.pairs_of(judged.parent, "quality", 0.5)) == 1
    with pytest.raises(InputError, match="did you mean 'overall'"):
        votes.pairs_of(judged, "overal", 0.0)


def test_what_cannot_be_learnt_from(judged, tmp_path, capsys):
    assert cli.main(["train", "preference", "--out", str(tmp_path)]) == 2
    assert "--votes" in capsys.readouterr().err
    nowhere = ["--votes", str(tmp_path / "arena.db"), "--out", str(tmp_path)]
    assert cli.main(["train", "preference", *nowhere]) == 2
    assert "there is no arena" in capsys.readouterr().err
    with pytest.raises(InputError, match="no video leads by 2"):
        votes.pairs_of(judged, "overall", 2.0)


def phase(arm, judged):
    cfg = recipe.get_config().phases[arm]
    stage = {"t2i": tiny.PICTURE, "i2v": tiny.KEYFRAMES}[cfg.stage]
    cfg.model = ConfigDict({cfg.stage: to_dict(stage)})
    cfg.data.votes, cfg.batch = str(judged), 2
    return cfg


@pytest.fixture(scope="module")
def begin():
    whole = tiny.make().params
    return {name: Component(whole[name], config) for name, config in {
        "vae": tiny.VAE, "text_encoder": tiny.TEXT, "spatial": tiny.SPATIAL,
        "motion_i2v": tiny.MOTION, "image_encoder": tiny.VISION, "image_attn": tiny.PROJECTION,
        "control": tiny.CONTROL}.items()}  # fmt: skip


@pytest.mark.parametrize("arm", ["pictures", "clips"])
def test_a_batch_is_what_was_preferred_and_the_loss_takes_it(judged, begin, arm, tmp_path):
    cfg = phase(arm, judged)
    task = votes.make(cfg, begin, tmp_path / arm)
    batch = next(task.batches(0, 0))
    assert batch["better"].shape == batch["worse"].shape and len(batch["ids"]) == 2
    # Of the dark video and the bright one: the first pair's better is the dark one.
    if arm == "clips":
        dark, bright = (batch[name].astype(float).mean(axis=(1, 2, 3)) for name in
                        ("image", "image_worse"))  # fmt: skip
        assert dark[0] < -0.5 < 0.4 < bright[0] and bright[1] < -0.5 < 0.4 < dark[1]
    params = task.init(jax.random.key(0))
    loss, said = jax.eval_shape(task.loss, params, task.frozen, batch, jax.random.key(1))
    assert loss.shape == () and "accuracy" in said
    cfg.data.count = 3
    with pytest.raises(InputError, match=r"data\.count"):
        votes.make(cfg, begin, tmp_path / arm)


@pytest.mark.long
def test_both_stages_learn_from_votes_and_are_packed(judged, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    start = media_clips.cascade(tmp_path / "cascade")
    batches = []
    whole = votes._Voted.batches

    def watched(self, seed, step):
        for batch in whole(self, seed, step):
            batches.append((self.cfg.stage, batch))
            yield batch

    monkeypatch.setattr(votes._Voted, "batches", watched)
    asked = ["steps=2", "batch=2", "log_every=1", f"cascade={start}", "optim.lr=1e-3",
             "optim.warmup=1"]  # fmt: skip
    settings = [word for one in asked for word in ("--set", one)]
    runs = ["--out", str(tmp_path / "runs")]
    assert cli.main(["train", "preference", "--votes", str(judged), *settings, *runs]) == 0
    before, (folder,) = bundle.read(start), (tmp_path / "runs/preference").rglob("cascade.json")
    after = bundle.read(folder.parent)
    for name in ("motion_i2v", "t2i_unet"):
        old = before.load(name if name in before.components else "spatial")
        assert trees.digest(after.load(name)) != trees.digest(old), name
    assert trees.digest(after.load("motion_v2v")) == trees.digest(before.load("motion_v2v"))
    clips = next(batch for stage, batch in batches if stage == "i2v")
    assert clips["better"].shape == clips["worse"].shape and clips["better"].ndim == 5
    # The dark video and the bright one, each with its own first frame.
    assert abs(clips["image"].astype(float) - clips["image_worse"]).mean() > 1
    assert np.isfinite(clips["better"]).all() and jax.tree.leaves(clips)
