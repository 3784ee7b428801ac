import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.diffusion import keys


def data(key):
    return np.asarray(jax.random.key_data(key))


def test_names_hash_to_the_same_number_for_ever():
    assert keys.word("noise") == 0x54127836
    assert keys.word("timestep") != keys.word("noise")


def test_purposes_are_independent_and_repeatable():
    key = keys.seed(7)
    assert (data(keys.fold(key, "noise")) == data(keys.fold(key, "noise"))).all()
    assert (data(keys.fold(key, "noise")) != data(keys.fold(key, "drop_text"))).any()
    folded = jax.jit(lambda i: keys.fold(key, i))(jnp.int32(3))
    assert (data(folded) == data(keys.fold(key, 3))).all()


def test_a_sample_in_a_batch_equals_the_sample_alone():
    batch = keys.fold(keys.seeds([5, 9, 2**32 - 1]), "noise")
    drawn = keys.normal(batch, (2, 3))
    assert drawn.shape == (3, 2, 3)
    for i, number in enumerate([5, 9, 2**32 - 1]):
        alone = keys.fold(keys.seed(number), "noise")
        assert (data(alone) == data(batch[i])).all()
        assert (drawn[i] == jax.random.normal(alone, (2, 3))).all()
        assert (drawn[i] == keys.normal(keys.fold(keys.seeds([number]), "noise"), (2, 3))[0]).all()


def test_seeds_are_the_same_under_another_default_generator():
    with jax.default_prng_impl("rbg"):
        other = keys.seed(5)
    assert (data(other) == data(keys.seed(5))).all()


def test_per_sample_keys_do_not_depend_on_the_batch_size():
    key = keys.seed(1)
    small, large = keys.per_sample(key, 2), keys.per_sample(key, 5)
    assert (data(small) == data(large[:2])).all()
    assert len({tuple(row) for row in data(large)}) == 5


def test_bernoulli_is_true_with_its_probability():
    batch = keys.per_sample(keys.seed(0), 4096)
    # Standard error 0.0047 at 4096 draws: 0.02 is four of them.
    assert abs(keys.bernoulli(batch, 0.1).mean() - 0.1) < 0.02
    assert not keys.bernoulli(batch, 0.0).any()
    assert keys.bernoulli(batch, 1.0).all()


@pytest.mark.parametrize("number", [-1, 2**32])
def test_a_seed_out_of_range_is_named(number):
    with pytest.raises(ValueError, match=rf"seed {number} is out of range.*0\.\.4294967295"):
        keys.seed(number)
