import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.train import adversary


def test_the_critic_s_pull_is_as_strong_as_the_others_and_no_stronger():
    made = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)), jnp.float32)

    def quality(x):
        return jnp.mean(jnp.square(x - 1))

    def doubt(x):
        return 7.0 * jnp.mean(jnp.sin(x))

    def total(x, weight):
        return adversary.balanced(x, quality, doubt, weight)

    (value, terms), got = jax.value_and_grad(total, has_aux=True)(made, 0.5)
    good, bad = jax.grad(quality)(made), jax.grad(doubt)(made)
    ratio = 0.5 * jnp.linalg.norm(good.ravel()) / jnp.linalg.norm(bad.ravel())
    np.testing.assert_allclose(got, good + ratio * bad, atol=1e-6)
    np.testing.assert_allclose(value, quality(made) + ratio * doubt(made), rtol=1e-5)
    np.testing.assert_allclose(terms["doubt_weight"], ratio, rtol=1e-4)
    alone = jax.grad(lambda x: total(x, 0.0)[0])(made)
    np.testing.assert_allclose(alone, good, atol=1e-7)
    assert float(adversary.hinge(jnp.array([2.0]), jnp.array([-3.0]))) == 0.0
    assert float(adversary.hinge(jnp.zeros(3), jnp.zeros(2))) == 1.0


def test_the_maker_is_pulled_towards_what_the_critic_calls_real_and_the_critic_learns():
    rng = np.random.default_rng(1)
    made, real = (jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32) for _ in range(2))
    taste = jnp.asarray(rng.normal(size=(4, 4, 3)), jnp.float32)

    def judged(tree, *batches):
        return [0.01 * jnp.sum(tree[None] * x, axis=(1, 2, 3)) for x in batches]

    def quality(x):
        return jnp.mean(jnp.square(x - real))

    def total(made, tree, on):
        return adversary.versus(judged, tree, made, real, quality, 0.5, on)[0]

    gradients = jax.jit(jax.grad(total, (0, 1)))
    on, off = (jnp.full((2,), x) for x in (1.0, 0.0))
    (moved, learnt), (alone, idle) = gradients(made, taste, on), gradients(made, taste, off)
    np.testing.assert_allclose(alone, jax.grad(quality)(made), atol=1e-7)
    assert not idle.any()
    # A step down raises the critic's score, by half as strong a pull as quality's.
    pull = moved - alone
    assert float(judged(taste, made - pull)[0].sum()) > float(judged(taste, made)[0].sum())
    np.testing.assert_allclose(jnp.linalg.norm(pull), 0.5 * jnp.linalg.norm(alone), rtol=1e-4)
    # Within the hinge, its own step parts the real from the made, and nothing else moves it.
    np.testing.assert_allclose(learnt, 0.005 * (made - real).mean(0), atol=1e-7)


@pytest.mark.parametrize("step, expected", [(4, 0.0), (5, 1.0), (6, 1.0)])
def test_it_takes_part_from_its_step_on(step, expected):
    assert adversary.active(step, 5, 3).tolist() == [expected] * 3
