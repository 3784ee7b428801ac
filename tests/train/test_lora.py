import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.train import lora

TREE = {
    "attn": {"to_q": {"kernel": jnp.ones((4, 6))}, "norm": {"scale": jnp.ones(6)}},
    "conv": {"kernel": jnp.ones((3, 3, 2, 5)), "bias": jnp.zeros(5)},
}


def test_fresh_factors_change_nothing():
    factors = lora.init(jax.random.key(0), TREE, rank=2)
    assert factors["conv"]["kernel"]["down"].shape == (18, 2)
    assert "norm" not in factors["attn"] and "bias" not in factors["conv"]
    merged = lora.merge(TREE, factors)
    assert jax.tree.all(jax.tree.map(np.array_equal, merged, TREE))


def test_merged_kernels_act_as_the_kernel_and_the_low_rank_path_beside_it():
    factors = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.size), x.shape),
        lora.init(jax.random.key(0), TREE, rank=2),
    )
    merged = lora.merge(TREE, factors, 0.5)
    x = jax.random.normal(jax.random.key(1), (3, 4))
    pair = factors["attn"]["to_q"]["kernel"]
    beside = x @ TREE["attn"]["to_q"]["kernel"] + 0.5 * (x @ pair["down"]) @ pair["up"]
    np.testing.assert_allclose(x @ merged["attn"]["to_q"]["kernel"], beside, atol=1e-5)

    # A convolution: first by the window's factors to `rank` channels, then across channels.
    picture = jax.random.normal(jax.random.key(2), (1, 7, 5, 2))
    pair = factors["conv"]["kernel"]

    def conv(kernel):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(picture, kernel, (1, 1), "SAME", dimension_numbers=dims)

    low = conv(pair["down"].reshape(3, 3, 2, 2)) @ pair["up"]
    np.testing.assert_allclose(
        conv(merged["conv"]["kernel"]), conv(TREE["conv"]["kernel"]) + 0.5 * low, atol=1e-4
    )


def test_only_what_is_asked_for_is_adapted_and_only_factors_learn():
    factors = lora.init(jax.random.key(0), TREE, rank=1, match=r"to_[qkv]/")
    assert set(factors) == {"attn"}
    slopes = jax.grad(lambda f: jnp.sum(lora.merge(TREE, f)["attn"]["to_q"]["kernel"] ** 2))(
        factors
    )
    pair = slopes["attn"]["to_q"]["kernel"]
    assert np.abs(pair["up"]).max() > 0 and np.abs(pair["down"]).max() == 0  # up is zero still


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="no kernel's path matches 'nothing'"):
        lora.init(jax.random.key(0), TREE, 1, "nothing")
    with pytest.raises(ValueError, match="rank"):
        lora.init(jax.random.key(0), TREE, 0)
    factors = lora.init(jax.random.key(0), TREE, 1, "conv")
    with pytest.raises(ValueError, match="no kernel 'conv/kernel'"):
        lora.merge({"attn": TREE["attn"]}, factors)
