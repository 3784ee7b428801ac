import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.diffusion import prediction
from mv2_jax.diffusion.names import PREDICTIONS

SHAPE = (3, 2, 4, 5)
X0, EPS = jax.random.normal(jax.random.key(0), (2, *SHAPE))
ALPHA = jnp.asarray([0.9, 0.5, 0.1])
SIGMA = jnp.sqrt(1 - ALPHA**2)
X = prediction.noised(X0, EPS, ALPHA, SIGMA)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_targets_give_back_what_they_were_made_of(kind):
    """One signal per sample; float32 errors grow as 1 / alpha at most."""
    output = prediction.target(kind, X0, EPS, ALPHA, SIGMA)
    np.testing.assert_allclose(prediction.to_x0(kind, output, X, ALPHA, SIGMA), X0, atol=5e-6)
    np.testing.assert_allclose(prediction.from_x0(kind, X0, X, ALPHA, SIGMA), output, atol=2e-6)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("alpha, sigma", [(0.0, 1.0), (1.0, 0.0)])
def test_both_ends_are_finite_with_their_gradients(kind, alpha, sigma):
    x = prediction.noised(X0, EPS, alpha, sigma)
    output = prediction.target(kind, X0, EPS, alpha, sigma)
    for convert in (prediction.to_x0, prediction.from_x0):
        assert jnp.isfinite(convert(kind, output, x, alpha, sigma)).all()

        def total(output, alpha, convert=convert):
            return convert(kind, output, x, alpha, sigma).sum()

        assert all(jnp.isfinite(g).all() for g in jax.grad(total, (0, 1))(output, alpha))


def test_zero_signal_is_exact_for_v_and_x0():
    for kind in ("v", "x0"):
        output = prediction.target(kind, X0, EPS, 0.0, 1.0)
        assert (prediction.to_x0(kind, output, EPS, 0.0, 1.0) == X0).all()
    # An eps output says nothing of x0 there.
    assert (prediction.to_x0("eps", EPS, EPS, 0.0, 1.0) == 0).all()


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown prediction 'epss'.*did you mean 'eps'"):
        prediction.to_x0("epss", X0, X0, 0.5, 0.5)
