import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mv2_jax.train import moments, optim

from .regression import config

PARAMS = {
    "conv_in": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
    "proj": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)},
    "norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
    "token": {"embedding": jnp.ones((5, 4))},
}


def settings(**changes):
    return config(optim=changes).optim


def test_rates_over_a_phase():
    def at(step, fraction, **kw):
        return optim.rate(settings(lr=1.0, warmup=10, final=0.1, **kw), step, fraction)

    assert at(0, 0.0) == pytest.approx(0.1) and at(4, 0.0) == pytest.approx(0.5)
    assert at(99, 0.5, schedule="cosine") == pytest.approx(0.55)
    assert at(99, 1.0, schedule="cosine") == pytest.approx(0.1)
    assert at(99, 2.0, schedule="linear") == pytest.approx(0.1)
    assert at(99, 0.9, schedule="constant") == 1.0
    stable = {"schedule": "warmup_stable_decay", "decay_from": 0.8}
    assert at(99, 0.8, **stable) == 1.0 and at(99, 0.9, **stable) == pytest.approx(0.55)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"name": "adamv"}, "did you mean 'adamw'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"clock": "sun"}, "unknown optim.clock 'sun'"),
    ],
)
def test_unknown_words(changes, says):
    with pytest.raises(ValueError, match=says):
        optim.check(settings(**changes))


def test_decay_pulls_at_kernels_only():
    tx = optim.transformation(settings(weight_decay=0.5, clip=0.0))
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(zero, tx.init(PARAMS), PARAMS)
    pulled = {
        jax.tree_util.keystr(k): float(v.mean())
        for k, v in jax.tree_util.tree_leaves_with_path(updates)
    }
    for name, value in pulled.items():
        assert value == pytest.approx(-0.5 if "kernel" in name else 0.0), name


def test_adamw_is_the_textbook_step():
    cfg = settings(weight_decay=0.1, clip=0.0, b1=0.8, b2=0.9, eps=1e-8)
    tx, rate = optim.transformation(cfg), 0.01
    rng = np.random.default_rng(0)
    p = {"a": {"kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)}}
    state, expected = tx.init(p), np.asarray(p["a"]["kernel"], np.float64)
    m = v = 0.0
    for t in range(1, 4):
        g = rng.normal(size=(3, 2))
        updates, state = tx.update({"a": {"kernel": jnp.asarray(g, jnp.float32)}}, state, p)
        p = jax.tree.map(lambda x, u: x + rate * u, p, updates)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        step = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
        expected = expected - rate * (step + 0.1 * expected)
    np.testing.assert_allclose(p["a"]["kernel"], expected, rtol=1e-5)


def test_clipping_bounds_the_gradient_before_adam_sees_it():
    tx = optim.transformation(settings(clip=1.0))
    grads = jax.tree.map(lambda x: 100.0 * jnp.ones_like(x), PARAMS)
    _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
    (moments,) = [
        s.mu for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")
    ]
    assert float(optax.global_norm(moments)) == pytest.approx(0.1, rel=1e-4)  # (1 - b1) * 1


def test_muon_orthogonalises_kernels_and_leaves_the_rest_to_adam():
    tx = optim.transformation(settings(name="muon", clip=0.0, weight_decay=0.0))
    rng = np.random.default_rng(1)
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), PARAMS)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    singular = np.linalg.svd(updates["proj"]["kernel"], compute_uv=False)
    assert singular.max() / singular.min() < 2.0  # Newton-Schulz brings them near to one another
    for name in ("conv_in", "token"):
        for leaf in jax.tree.leaves(updates[name]):
            assert float(jnp.ptp(jnp.abs(leaf))) < 1e-3  # Adam's first step: signs of one size


def trained(states, name="adamw", steps=200):
    """(loss by step, state, params) of a noisy regression whose moments are stored so."""
    tx = optim.transformation(settings(name=name, states=states, weight_decay=0.0, b2=0.999))
    rng = np.random.default_rng(0)
    target = jnp.asarray(rng.normal(size=(64, 16)), jnp.float32)
    params = {"layer": {"kernel": jnp.zeros((64, 16)), "bias": jnp.zeros(16)}}

    @jax.jit
    def step(params, state, key):
        x = jax.random.normal(key, (32, 64))

        def loss(params):
            noise = 0.1 * jax.random.normal(key, (32, 16))
            layer = params["layer"]
            error = x @ (layer["kernel"] - target) + layer["bias"][None] + noise
            return jnp.mean(error**2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return jax.tree.map(lambda p, u: p + 0.03 * u, params, updates), state, value

    state, losses = tx.init(params), []
    for n in range(steps):
        params, state, value = step(params, state, jax.random.key(n))
        losses.append(float(value))
    return losses, state, params


def size(state):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def test_moments_in_fewer_bits_train_as_well():
    ends, sizes = {}, {}
    for states in ("fp32", "bf16", "int8"):
        losses, state, _ = trained(states)
        ends[states], sizes[states] = np.mean(losses[-30:]), size(state)
        assert losses[0] > 50 * ends[states]
    assert ends["bf16"] == pytest.approx(ends["fp32"], rel=0.05)
    assert ends["int8"] == pytest.approx(ends["fp32"], rel=0.15)
    assert sizes["bf16"] < 0.53 * sizes["fp32"] and sizes["int8"] < 0.34 * sizes["fp32"]


@pytest.mark.parametrize("kind, worst, bias", [("bf16", 2**-7, 2e-4), ("int8", 0.2, 2e-3)])
def test_rounding_keeps_the_mean(kind, worst, bias):
    """Both moments come back within a step of the code, and over many draws as they were."""
    rng = np.random.default_rng(1)
    mu, nu = rng.normal(size=(16, 64)), rng.lognormal(-12, 3, size=(16, 64))
    state = optax.ScaleByAdamState(jnp.zeros((), jnp.int32), *map(jnp.float32, (mu, nu)))
    again = jax.jit(lambda n: moments.decode(moments.encode(state, n, kind), kind))
    draws = [again(jnp.int32(n)) for n in range(100)]
    rows = np.abs(mu).max(-1, keepdims=True)
    for draw in draws[:5]:
        assert np.abs(draw.mu - mu).max() <= (worst * np.abs(mu) if kind == "bf16"
                                              else worst / 10 * rows).max()  # fmt: skip
        assert (np.asarray(draw.nu) > 0).all()
    mean = np.mean([draw.mu for draw in draws], axis=0)
    assert np.abs((mean - mu) / rows).mean() < bias
    mean = np.mean([draw.nu for draw in draws], axis=0)
    large = nu > 1e-3 * nu.max(-1, keepdims=True)
    assert np.abs(mean / nu - 1)[large].mean() < 10 * bias
    zero = jax.tree.map(jnp.zeros_like, state)
    back = moments.decode(moments.encode(zero, jnp.int32(0), kind), kind)
    assert all((x == 0).all() for x in jax.tree.leaves(back))


def test_small_leaves_and_counts_stay():
    tx = optim.transformation(settings(states="int8"))
    kinds = {str(x.dtype) for x in jax.tree.leaves(tx.init(PARAMS))}
    assert kinds == {"float32", "int32"}
