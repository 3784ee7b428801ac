"""Captions are read by the tokenizer of the text encoder that is trained, or by none."""

import dataclasses

import jax
import jax.numpy as jnp
import media_clips
import numpy as np
import pytest
import tiny
from media_clips import CLIP

from mv2_jax.configs import smoke
from mv2_jax.errors import InputError
from mv2_jax.stages import stage
from mv2_jax.text import CLIPTokenizer, WordTokenizer, emphasis
from mv2_jax.train import recipe, words
from mv2_jax.train.task import Component
from mv2_jax.train.tasks import t2i
from mv2_jax.train.toybox.source import Toybox

LONG = "a (red) ball, very long: " + "on a meadow by the sea " * 30


@pytest.fixture
def converted(tmp_path):
    return media_clips.cascade(tmp_path / "converted")


def phase():
    cfg = smoke.get_config().phases.t2i
    cfg.model.t2i = smoke.ConfigDict(smoke.to_dict(tiny.PICTURE))
    cfg.data.update(sizes=(48,), count=8, shard=8)
    cfg.name = "own/t2i"
    return cfg


def test_a_converted_cascade_reads_captions_with_its_own_tokenizer(converted, tmp_path):
    begin = recipe.components_in(converted)
    task = t2i.make(phase(), begin, tmp_path / "t2i")
    batch = next(task.batches(0, 0))
    source = Toybox({}, 0)
    said = source.captions(source.clips(source.pick(0, 0, 4, 8), 1, (48, 48))[1], 0, 0)
    assert batch["ids"].tolist() == CLIPTokenizer().encode(said).tolist()
    assert task.notes["tokenizer"]["class"] == "CLIPTokenizer"


def test_long_captions_keep_all_rows(converted, tmp_path, monkeypatch):
    cfg = phase()
    cfg.data.caption_rows = 3
    begin = recipe.components_in(converted)
    monkeypatch.setattr(Toybox, "captions", lambda self, notes, *_: [LONG] * len(notes["label"]))
    task = t2i.make(cfg, begin, tmp_path / "t2i")
    batch = next(task.batches(0, 0))
    assert batch["ids"].shape == (4, 3, 77)
    weights = task.init(jax.random.key(0))
    loss, _ = jax.jit(task.loss)(weights, task.frozen, batch, jax.random.key(1))
    cut = {**batch, "ids": batch["ids"][:, :1]}
    short, _ = jax.jit(task.loss)(weights, task.frozen, cut, jax.random.key(1))
    assert np.isfinite(loss) and loss != short


def test_rows_of_a_caption_are_those_of_a_prompt():
    clip = CLIPTokenizer()
    plain = LONG.replace("(", "").replace(")", "").replace(":", "")
    ours = words.encode(clip, [plain, "short"], 3)
    theirs = emphasis.rows(clip, [plain, "short"]).ids[:, :3]
    assert ours.tolist() == theirs.tolist()
    # Brackets are text in captions; in prompts they weigh.
    assert (
        words.encode(clip, ["a (red) ball"], 2)[0, 0].tolist()
        == clip.encode(["a (red) ball"])[0].tolist()
    )
    assert words.cut(clip, [LONG, "short"], 1) == 1 and words.cut(clip, ["short"], 1) == 0
    assert words.cut(clip, [LONG], 3) == 0


@pytest.mark.parametrize(
    "tokenizer, cfg",
    [
        (WordTokenizer(["red", "ball"], 77), CLIP),
        (CLIPTokenizer(), dataclasses.replace(CLIP, vocab_size=49000)),
        (CLIPTokenizer(), dataclasses.replace(CLIP, eos_token_id=5)),
        (WordTokenizer(["red"], 77), dataclasses.replace(CLIP, vocab_size=5, eos_token_id=2)),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(tokenizer, cfg):
    with pytest.raises(InputError, match="begin from the folder it belongs to"):
        words.check(cfg, tokenizer)


def test_what_fits_is_taken():
    words.check(CLIP, CLIPTokenizer())
    words.check(dataclasses.replace(CLIP, eos_token_id=2), CLIPTokenizer())
    words.check(dataclasses.replace(CLIP, vocab_size=49410), CLIPTokenizer())
    words.check(tiny.TEXT, tiny.WORDS)


def test_a_text_encoder_without_a_tokenizer_does_not_get_the_toyboxes(tmp_path, converted):
    begin = recipe.components_in(converted)
    begin["text_encoder"] = Component(begin["text_encoder"].params, CLIP)
    with pytest.raises(InputError, match=r"knows \d+ tokens"):
        t2i.make(phase(), begin, tmp_path / "t2i")


def test_rows_are_refused_where_they_cannot_be_read():
    with pytest.raises(InputError, match="must be 1 or more"):
        words.rows_of({"caption_rows": 0}, CLIPTokenizer())
    with pytest.raises(InputError, match="single rows"):
        words.rows_of({"caption_rows": 2}, tiny.WORDS)


def test_several_rows_are_told_as_when_sampling():
    """Training's rows [B, n, L] give the states that a prompt's rows give in the cascade."""
    clip = CLIPTokenizer()
    text = stage.Text(CLIP)
    tree = {"text_encoder": media_clips.text_encoder()}
    net = stage.build("t2i", tiny.PICTURE, {"text_encoder": CLIP}, tiny.VAE.factor)
    plain = "a red ball " * 60
    null = jnp.asarray(clip.encode([""])[0])
    batch = {"ids": jnp.asarray(words.encode(clip, [plain, "short"], 3)), "null_ids": null}
    told, nothing = text.encode(tree, net, stage.in_rows(batch))
    marked = jax.tree.map(jnp.asarray, emphasis.rows(clip, [plain, "short"]))
    empty = jax.tree.map(jnp.asarray, emphasis.rows(clip, ["", plain]))
    empty = empty._replace(ids=empty.ids[:1], weights=empty.weights[:1])
    expected, _ = text.encode(tree, net, {"ids": marked, "negative": empty})
    assert told.text.shape == (2, 3 * 77, 8) == nothing.text.shape
    np.testing.assert_array_equal(told.text, expected.text)
