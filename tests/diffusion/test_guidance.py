import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.config import ScheduleConfig
from mv2_jax.diffusion import guidance, samplers

B, SHAPE = 2, (3, 4, 4, 2)
NONE, IMAGE, BOTH = jax.random.normal(jax.random.key(0), (3, B, *SHAPE))
THREE = jnp.stack([NONE, IMAGE, BOTH])
TWO = jnp.stack([NONE, BOTH])
ONE = BOTH[None]
APART, PUBLIC = guidance.APART, guidance.PUBLIC
POINT = samplers.Point(jnp.float32(500.0), jnp.float32(0.6), jnp.float32(0.8))


def close(a, b, atol=2e-6):
    np.testing.assert_allclose(a, b, atol=atol)


def test_each_condition_has_its_own_scale():
    for text, image in ((7.5, 1.5), (1.0, 3.0), (4.0, 0.0)):
        g = guidance.make(text, image)
        close(
            APART.combine(THREE, g, POINT.k),
            NONE + image * (IMAGE - NONE) + text * (BOTH - IMAGE),
        )
        close(PUBLIC.combine(TWO, g, POINT.k), NONE + text * (BOTH - NONE))


def test_scales_of_one_and_zero_are_the_evaluations_themselves():
    for scales, expected in (((1, 1), BOTH), ((0, 1), IMAGE), ((0, 0), NONE)):
        close(APART.combine(THREE, guidance.make(*scales), POINT.k), expected)
    assert (guidance.NONE.combine(ONE, guidance.make(9.0), POINT.k) == BOTH).all()


def test_equal_scales_in_three_ways_are_two_ways():
    g = guidance.make(5.0, 5.0)
    close(APART.combine(THREE, g, POINT.k), PUBLIC.combine(TWO, g, POINT.k), 5e-6)


@pytest.mark.parametrize(
    "text, image, rows",
    [
        (1, 1, [2]),
        (5, 5, [0, 2]),
        (0, 0, [0, 2]),
        (3, 1, [1, 2]),
        (1, 3, [0, 1, 2]),
        (7.5, 1.5, [0, 1, 2]),
    ],
)
def test_the_fewest_rows_are_the_same_guidance(text, image, rows):
    g = guidance.make(text, image)
    least = APART.least(g)
    assert least.withheld == tuple(APART.withheld[row] for row in rows)
    found = least.combine(THREE[jnp.asarray(rows)], g, POINT.k)
    close(found, APART.combine(THREE, g, POINT.k), 5e-6)


def test_two_rows_need_one_where_nothing_is_guided():
    assert PUBLIC.least(guidance.make(1.0)) == guidance.NONE
    assert PUBLIC.least(guidance.make(1.5)) == PUBLIC


def test_scales_may_differ_by_sample():
    g = guidance.make(jnp.asarray([2.0, 6.0]), jnp.asarray([1.0, 3.0]))
    both = APART.combine(THREE, g, POINT.k)
    for i, (text, image) in enumerate([(2.0, 1.0), (6.0, 3.0)]):
        one = jnp.stack([NONE[i], IMAGE[i], BOTH[i]])
        close(APART.combine(one[:, None], guidance.make(text, image), POINT.k)[0], both[i])


def test_rescale_brings_back_the_conditioned_spread():
    axes = (1, 2, 3, 4)
    plain = PUBLIC.combine(TWO, guidance.make(8.0), POINT.k)
    whole = PUBLIC.combine(TWO, guidance.make(8.0, rescale=1.0), POINT.k)
    assert (plain.std(axes) > 2 * BOTH.std(axes)).all()
    np.testing.assert_allclose(whole.std(axes), BOTH.std(axes), rtol=1e-5)
    part = PUBLIC.combine(TWO, guidance.make(8.0, rescale=0.7), POINT.k)
    close(part, 0.7 * whole + 0.3 * plain, 1e-5)


def test_rescale_equals_diffusers():
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    plain = PUBLIC.combine(TWO, guidance.make(8.0), POINT.k)
    theirs = rescale_noise_cfg(torch.tensor(np.array(plain)), torch.tensor(np.array(BOTH)), 0.7)
    mine = PUBLIC.combine(TWO, guidance.make(8.0, rescale=0.7), POINT.k)
    close(mine, theirs.numpy(), 5e-6)


def test_outside_of_the_interval_the_output_is_the_conditioned_one():
    """Bit for bit; the interval includes its ends, and k = inf is inside of the default one."""
    g = guidance.make(8.0, 3.0, 0.5, low=0.5, high=2.0)
    inside = APART.combine(THREE, guidance.make(8.0, 3.0, 0.5), POINT.k)
    for k, active in ((0.4, False), (0.5, True), (2.0, True), (2.1, False), (jnp.inf, False)):
        out = APART.combine(THREE, g, jnp.float32(k))
        assert (out == (inside if active else BOTH)).all()
    everywhere = APART.combine(THREE, guidance.make(8.0, 3.0, 0.5), jnp.float32(jnp.inf))
    assert (everywhere == inside).all()


def test_equal_outputs_stay_what_they_are():
    flat = jnp.ones((2, 2, 3, 3, 1))
    out = PUBLIC.combine(flat, guidance.make(7.0, rescale=1.0), POINT.k)
    assert jnp.isfinite(out).all()


def test_one_call_of_the_network_a_step_and_one_compilation_for_all_scales():
    calls = []

    def model(x, t, condition):
        calls.append((x.shape, t.shape, t.dtype, condition["text"].shape))
        return x * condition["text"].mean(2)[:, :, None, None, None, None]

    condition = {"text": jnp.stack([jnp.full((B, 4), c) for c in (0.0, 0.1, 0.2)])}
    sampler = samplers.ddim()
    grid = sampler.grid(ScheduleConfig(), 5)

    @jax.jit
    def chain(g):
        def predict(x, point):
            return APART.combine(model(*APART.repeat(x, point), condition), g, point.k)

        state = samplers.start(sampler, grid, NONE)
        return samplers.sample(samplers.denoiser(predict, "eps"), sampler, grid, state).x

    ends = [chain(guidance.make(*s)) for s in ((7.5, 1.5), (2, 1, 0.7), (3.0, 1.0, 0.0, 1.0, 5))]
    assert calls == [((3, B, *SHAPE), (3, B), jnp.float32, (3, B, 4))]
    assert chain._cache_size() == 1
    assert all(jnp.isfinite(e).all() for e in ends) and (ends[0] != ends[1]).any()


def test_guiding_outputs_is_guiding_denoised_samples():
    """Weights sum to 1: x0 of the guided v is the guided x0."""
    from mv2_jax.diffusion import prediction

    x = jax.random.normal(jax.random.key(9), (B, *SHAPE))
    g = guidance.make(6.0, 2.0)
    a, s = POINT.alpha, POINT.sigma
    first = prediction.to_x0("v", APART.combine(THREE, g, POINT.k), x, a, s)
    each = jnp.stack([prediction.to_x0("v", row, x, a, s) for row in THREE])
    close(first, APART.combine(each, g, POINT.k), 1e-5)


def test_rules_and_rows_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="2 rows of outputs; this rule has 3"):
        APART.combine(TWO, guidance.make(), POINT.k)
    with pytest.raises(ValueError, match="a rule of 2 rows needs 1 scales, not 0"):
        guidance.Rule((("text",), ()))
    with pytest.raises(ValueError, match="the last row of a guidance rule is told everything"):
        guidance.Rule(((), ("text",)), ("text",))
    with pytest.raises(ValueError, match="no number 'txt'; did you mean 'text'"):
        guidance.Rule((("text",), ()), ("txt",))


def test_rules_are_found_by_name():
    assert guidance.rule("public") is PUBLIC
    assert guidance.rule("mv2_jax.diffusion.guidance:NONE") is guidance.NONE
    with pytest.raises(ValueError, match=r"unknown guidance rule 'publik'.*did you mean 'public'"):
        guidance.rule("publik")
    with pytest.raises(ValueError, match=r"not a guidance\.Rule"):
        guidance.rule("mv2_jax.diffusion.guidance:make")


def test_rows_that_would_be_told_the_same_are_one():
    """A stage without a picture: text and picture apart is guidance over the text."""
    assert APART.among(["text"]) == PUBLIC.among(["text"]) == guidance.TEXT
    assert APART.among(["text", "image", "control"]) == APART
    assert PUBLIC.among(["text", "image", "control"]) == PUBLIC
    assert PUBLIC.among(["control"]) == guidance.NONE
