import numpy as np
import pytest

from mv2_jax.storybox import captions, split
from mv2_jax.train import source as sources
from mv2_jax.train.phase import phase


@pytest.fixture(scope="module")
def source():
    return sources.of(phase("t2i", data={"source": "storybox"}))


def test_samples_are_of_training_with_captions_of_their_own(source):
    notes = {"label": np.asarray(source.notes(np.arange(64))["label"])}
    assert split.is_train(notes["label"].astype(int)).all()
    said = source.captions(notes, 0, 0)
    assert [captions.parse(text) for text in said] == [tuple(row) for row in notes["label"]]
    assert said == source.captions(notes, 0, 0) != source.captions(notes, 0, 1)
    words = source.tokenizer(captions.LONGEST + 2)
    assert not [text for text in said if words.unknown(text)]
    assert len({*source.examples(16)}) == 16


@pytest.mark.slow
def test_clips_are_those_numbered(source):
    video, notes = source.clips([5, 9], 2, (32, 32))
    again, same = source.clips([9], 2, (32, 32))
    np.testing.assert_allclose(video[1:], again, atol=2e-5)
    assert (np.asarray(notes["label"])[1:] == same["label"]).all()
    assert source.pictures(0, 3, 2, 32, 16).shape == (8, 16, 16, 3)
