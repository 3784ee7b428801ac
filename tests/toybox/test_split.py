import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.toybox import split
from mv2_jax.toybox.vocabulary import MOTIONS, SIZES

EVERY = np.array(list(itertools.product(*map(range, SIZES))))


def test_shares():
    triples, quads = split.in_triples(*EVERY.T), split.in_quads(*EVERY.T)
    assert not (triples & quads).any()
    assert 0.08 < triples.mean() < 0.12
    assert 0.08 < quads[~triples].mean() < 0.12
    assert len(split.TRAIN) + sum(len(v) for v in split.TEST.values()) == len(EVERY)


def test_a_withheld_triple_is_withheld_with_all_motions():
    triples = split.in_triples(*EVERY.T).reshape(-1, SIZES[3])
    assert (triples.all(axis=1) == triples.any(axis=1)).all()


def test_every_word_and_pair_of_words_is_well_represented_in_training():
    for i in range(4):
        counts = np.bincount(split.TRAIN[:, i], minlength=SIZES[i])
        assert counts.min() > 0.9 * counts.mean()
    for i, j in itertools.combinations(range(4), 2):
        counts = np.zeros((SIZES[i], SIZES[j]), int)
        np.add.at(counts, (split.TRAIN[:, i], split.TRAIN[:, j]), 1)
        assert counts.min() > 0.6 * counts.mean(), (i, j)


def test_every_word_occurs_in_both_test_sets():
    for table in split.TEST.values():
        for i in range(4):
            assert len(np.unique(table[:, i])) == SIZES[i]


def test_numpy_and_jax_agree():
    assert (np.asarray(split.is_train(*jnp.asarray(EVERY).T)) == split.is_train(*EVERY.T)).all()


def test_draws_are_from_training_and_near_uniform():
    keys = jax.random.split(jax.random.key(0), 4096)
    worlds = jax.jit(jax.vmap(split.sample_train_world))(keys)
    words = [np.asarray(w) for w in worlds[:4]]
    assert split.is_train(*words).all()
    for values, size in zip(words, SIZES):
        assert np.bincount(values, minlength=size).min() > 0.75 * len(values) / size


def test_motions_are_drawn_as_often_as_asked():
    keys = jax.random.split(jax.random.key(0), 4096)
    often = {"spinning": 5.0, "rising": 0.0}
    worlds = jax.jit(jax.vmap(lambda key: split.sample_train_world(key, often)))(keys)
    words = [np.asarray(w) for w in worlds[:4]]
    assert split.is_train(*words).all()
    counts = dict(zip(MOTIONS, np.bincount(words[3], minlength=len(MOTIONS))))
    share = {
        name: (split.TRAIN[:, 3] == i).sum() * often.get(name, 1.0)
        for i, name in enumerate(MOTIONS)
    }
    for name, count in counts.items():
        mean = 4096 * share[name] / sum(share.values())
        assert abs(count - mean) <= 4 * mean**0.5
    with pytest.raises(ValueError, match="did you mean 'spinning'"):
        split.sample_train_world(keys[0], {"spining": 2.0})
    with pytest.raises(ValueError, match="-1"):
        split.shares({"rising": -1})
    with pytest.raises(ValueError, match="leave one"):
        split.shares(dict.fromkeys(MOTIONS, 0))


def test_test_tuples_do_not_repeat_and_the_set_must_be_known():
    rows = split.test_tuples("triples", 100, seed=1)
    assert len(np.unique(rows, axis=0)) == 100
    assert split.in_triples(*rows.T).all()
    with pytest.raises(ValueError, match="did you mean 'triples'"):
        split.test_tuples("triple", 1)
