import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.config import ScheduleConfig
from mv2_jax.diffusion import guidance, samplers

B, SHAPE = 2, (3, 4, 4, 2)
NONE, IMAGE, BOTH = jax.random.normal(jax.random.key(0), (3, B, *SHAPE))
THREE = jnp.concatenate([NONE, IMAGE, BOTH])
TWO = jnp.concatenate([NONE, BOTH])
POINT = samplers.Point(jnp.float32(500.0), jnp.float32(0.6), jnp.float32(0.8))


def close(a, b, atol=2e-6):
    np.testing.assert_allclose(a, b, atol=atol)


def test_each_condition_has_its_own_scale():
    for text, image in ((7.5, 1.5), (1.0, 3.0), (4.0, 0.0)):
        g = guidance.make(text, image)
        close(
            guidance.combine(THREE, g, 3, POINT.k),
            NONE + image * (IMAGE - NONE) + text * (BOTH - IMAGE),
        )
        close(guidance.combine(TWO, g, 2, POINT.k), NONE + text * (BOTH - NONE))


def test_scales_of_one_and_zero_are_the_evaluations_themselves():
    for scales, expected in (((1, 1), BOTH), ((0, 1), IMAGE), ((0, 0), NONE)):
        close(guidance.combine(THREE, guidance.make(*scales), 3, POINT.k), expected)
    assert (guidance.combine(BOTH, guidance.make(9.0), 1, POINT.k) == BOTH).all()


def test_equal_scales_in_three_ways_are_two_ways():
    g = guidance.make(5.0, 5.0)
    close(guidance.combine(THREE, g, 3, POINT.k), guidance.combine(TWO, g, 2, POINT.k), 5e-6)


@pytest.mark.parametrize(
    "text, image, ways", [(1, 1, 1), (5, 5, 2), (0, 0, 2), (1, 3, 3), (3, 1, 3), (7.5, 1.5, 3)]
)
def test_the_fewest_ways_are_the_same_guidance(text, image, ways):
    kept = guidance.fewest({"of": THREE}, 3, text, image)["of"]
    assert kept.shape[0] == ways * B
    g = guidance.make(text, image)
    found = guidance.combine(kept, g, ways, POINT.k)
    close(found, guidance.combine(THREE, g, 3, POINT.k), 5e-6)


def test_two_ways_need_one_where_nothing_is_guided():
    assert (guidance.fewest(TWO, 2, 1.0) == BOTH).all()
    assert guidance.fewest(TWO, 2, 1.5) is TWO


def test_scales_may_differ_by_sample():
    g = guidance.make(jnp.asarray([2.0, 6.0]), jnp.asarray([1.0, 3.0]))
    both = guidance.combine(THREE, g, 3, POINT.k)
    for i, (text, image) in enumerate([(2.0, 1.0), (6.0, 3.0)]):
        one = jnp.stack([NONE[i], IMAGE[i], BOTH[i]])
        close(guidance.combine(one, guidance.make(text, image), 3, POINT.k)[0], both[i])


def test_rescale_brings_back_the_conditioned_spread():
    axes = (1, 2, 3, 4)
    plain = guidance.combine(TWO, guidance.make(8.0), 2, POINT.k)
    whole = guidance.combine(TWO, guidance.make(8.0, rescale=1.0), 2, POINT.k)
    assert (plain.std(axes) > 2 * BOTH.std(axes)).all()
    np.testing.assert_allclose(whole.std(axes), BOTH.std(axes), rtol=1e-5)
    part = guidance.combine(TWO, guidance.make(8.0, rescale=0.7), 2, POINT.k)
    close(part, 0.7 * whole + 0.3 * plain, 1e-5)


def test_rescale_equals_diffusers():
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    plain = guidance.combine(TWO, guidance.make(8.0), 2, POINT.k)
    theirs = rescale_noise_cfg(torch.tensor(np.array(plain)), torch.tensor(np.array(BOTH)), 0.7)
    mine = guidance.combine(TWO, guidance.make(8.0, rescale=0.7), 2, POINT.k)
    close(mine, theirs.numpy(), 5e-6)


def test_outside_of_the_interval_the_output_is_the_conditioned_one():
    """Bit for bit; the interval includes its ends, and k = inf is inside of the default one."""
    g = guidance.make(8.0, 3.0, 0.5, low=0.5, high=2.0)
    inside = guidance.combine(THREE, guidance.make(8.0, 3.0, 0.5), 3, POINT.k)
    for k, active in ((0.4, False), (0.5, True), (2.0, True), (2.1, False), (jnp.inf, False)):
        out = guidance.combine(THREE, g, 3, jnp.float32(k))
        assert (out == (inside if active else BOTH)).all()
    everywhere = guidance.combine(THREE, guidance.make(8.0, 3.0, 0.5), 3, jnp.float32(jnp.inf))
    assert (everywhere == inside).all()


def test_equal_outputs_stay_what_they_are():
    flat = jnp.ones((4, 3, 3, 1))
    out = guidance.combine(flat, guidance.make(7.0, rescale=1.0), 2, POINT.k)
    assert jnp.isfinite(out).all()


def test_one_call_of_the_network_a_step_and_one_compilation_for_all_scales():
    calls = []

    def model(x, t, condition):
        calls.append((x.shape, t.shape, t.dtype, condition["text"].shape))
        return x * condition["text"][:, :, None, None, None].mean(1, keepdims=True)

    condition = guidance.stack(*({"text": jnp.full((B, 4), c)} for c in (0.0, 0.1, 0.2)))
    sampler = samplers.ddim()
    grid = sampler.grid(ScheduleConfig(), 5)

    @jax.jit
    def chain(g):
        predict = guidance.guided(model, condition, g, ways=3)
        state = samplers.start(sampler, grid, NONE)
        return samplers.sample(samplers.denoiser(predict, "eps"), sampler, grid, state).x

    ends = [chain(guidance.make(*s)) for s in ((7.5, 1.5), (2, 1, 0.7), (3.0, 1.0, 0.0, 1.0, 5))]
    assert calls == [((6, *SHAPE), (6,), jnp.float32, (6, 4))]
    assert chain._cache_size() == 1
    assert all(jnp.isfinite(e).all() for e in ends) and (ends[0] != ends[1]).any()


def test_guiding_outputs_is_guiding_denoised_samples():
    """Weights sum to 1: x0 of the guided v is the guided x0."""
    from mv2_jax.diffusion import prediction

    x = jax.random.normal(jax.random.key(9), (B, *SHAPE))
    g = guidance.make(6.0, 2.0)
    a, s = POINT.alpha, POINT.sigma
    first = prediction.to_x0("v", guidance.combine(THREE, g, 3, POINT.k), x, a, s)
    each = prediction.to_x0("v", THREE, jnp.concatenate([x] * 3), a, s)
    close(first, guidance.combine(each, g, 3, POINT.k), 1e-5)


def test_a_stack_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="5 outputs are no stack of"):
        guidance.combine(jnp.zeros((5, 2)), guidance.make(), 3, POINT.k)
    with pytest.raises(ValueError, match="1, 2 or 3 conditions, not 0"):
        guidance.stack()
