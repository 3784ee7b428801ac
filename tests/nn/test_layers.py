"""Linear layers and convolutions in half precision, beside fp32 and a rounding of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors

from mv2_jax.nn.layers import Dense, conv, dense

MADE = {
    "dense": (lambda dtype: dense(7, name="x", dtype=dtype), (3, 5, 33)),
    "conv": (lambda dtype: conv(7, stride=2, name="x", dtype=dtype), (2, 9, 5, 12)),
}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_rounds_once_after_the_bias(kind, dtype):
    make, shape = MADE[kind]
    random = np.random.default_rng(0)
    # What half precision holds exactly, so that the sums in fp32 are the truth.
    x = jnp.asarray(random.normal(size=shape), dtype)
    tree = jax.eval_shape(make(dtype).init, jax.random.key(0), x)
    tree = jax.tree.map(lambda s: jnp.asarray(random.normal(size=s.shape), dtype), tree)
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(dtype)}
    out = jax.jit(make(dtype).apply)(tree, x)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
    exact = jax.jit(make(jnp.float32).apply)(wide, x.astype(jnp.float32))
    assert out.dtype == dtype
    np.testing.assert_array_equal(np.float32(out), np.float32(exact.astype(dtype)))
    assert jax.tree.structure(tree) == jax.tree.structure(wide)


@pytest.mark.parametrize("kind", MADE)
def test_its_gradients_are_those_of_fp32(kind):
    make, shape = MADE[kind]
    random = np.random.default_rng(1)
    x = jnp.asarray(random.normal(size=shape), jnp.float32)
    tree = make(jnp.float32).init(jax.random.key(0), x)

    def loss(tree, dtype):
        return jnp.sum(jnp.sin(make(dtype).apply(tree, x).astype(jnp.float32)))

    half, whole = (jax.grad(loss)(tree, dtype) for dtype in (jnp.bfloat16, jnp.float32))
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(whole)):
        assert a.dtype == jnp.float32
        assert float(jnp.abs(a - b).mean()) < 0.02 * float(jnp.abs(b).mean())


def test_what_is_given_traces_no_initialiser_and_must_have_its_shape():
    traced = []

    def init(key, shape, dtype=jnp.float32):
        traced.append(shape)
        return jax.random.normal(key, shape, dtype)

    layer, x = Dense(4, dtype=jnp.float32, kernel_init=init), jnp.ones((2, 3))
    tree = layer.init(jax.random.key(0), x)
    assert traced == [(3, 4)]
    np.testing.assert_allclose(layer.apply(tree, x)[0], tree["params"]["kernel"].sum(0), rtol=1e-6)
    assert traced == [(3, 4)]
    with pytest.raises(errors.ScopeParamShapeError):
        layer.apply({"params": {**tree["params"], "kernel": jnp.ones((4, 3))}}, x)
    with pytest.raises(errors.ScopeParamNotFoundError):
        layer.apply({"params": {"kernel": jnp.ones((3, 4))}}, x)
