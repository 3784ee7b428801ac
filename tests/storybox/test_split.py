import jax
import numpy as np
import pytest

from mv2_jax.storybox import split
from mv2_jax.storybox.vocabulary import KINDS, NOTHING
from mv2_jax.storybox.world import words_of


def test_draws_are_of_training_alone_and_reach_every_word():
    keys = jax.random.split(jax.random.key(0), 4096)
    words = np.asarray(jax.jit(jax.vmap(lambda k: words_of(split.sample_train_world(k))))(keys))
    assert split.is_train(words).all()
    assert (words[:, 0] != words[:, 6]).all()
    alone = words[:, 6] == NOTHING
    assert 0.46 < alone.mean() < 0.54
    assert not words[alone, 7:].any()
    for i, names in enumerate(KINDS.values()):
        rows = words if i < 7 else words[~alone]
        found = np.bincount(rows[:, i], minlength=len(names))
        if i != 6:
            assert found.min() > 0.4 * len(rows) / len(names), names[found.argmin()]
        assert found.min() > 0


@pytest.mark.parametrize("which", split.SETS)
def test_the_test_sets_are_withheld_and_whole(which):
    words = split.test_words(which, 1200)
    assert words.shape == (1200, len(KINDS))
    assert not split.is_train(words).any()
    assert (split.in_acts(words) == (which == "acts")).all()
    assert set(words[:, 0]) == set(range(NOTHING))
    assert (split.test_words(which, 1200) == words).all()
    for i in (1, 2, 3, 4, 5, 8):
        assert set(words[:, i]) == set(range(len(list(KINDS.values())[i])))


def test_one_act_in_ten_is_withheld():
    share = len(split.TEST_ACTS) / (len(split.TEST_ACTS) + len(split.TRAIN_ACTS))
    assert share == pytest.approx(0.1, abs=0.005)


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match="acts"):
        split.test_words("quads", 1)
