import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.config import ScheduleConfig
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import samplers, schedules

EVEN = ScheduleConfig(spacing="trailing", final_alpha_one=True)  # steps dividing 1000 chain
ZERO = dataclasses.replace(EVEN, zero_terminal_snr=True)
KEYS = named.seeds([1, 2])
NOISE = named.normal(KEYS, (2, 3, 4))


def gaussian(mean, std):
    """The perfect denoiser of data from N(mean, std^2): E[x0 | x]."""

    def denoise(x, point):
        gain = std**2 * point.alpha / (point.alpha**2 * std**2 + point.sigma**2)
        return mean + gain * (x - point.alpha * mean)

    return denoise


@functools.partial(jax.jit, static_argnames=("name", "k"))
def run(name, grid, state, mean, std, k=None, eta=0.0):
    sampler = samplers.get(name)(**({"eta": eta} if name == "ddim" else {}))
    return samplers.sample(gaussian(mean, std), sampler, grid, state, k)


def begin(name, cfg, steps, x=NOISE, keys=KEYS, index=0):
    sampler = samplers.get(name)()
    grid = sampler.grid(cfg, steps)
    return grid, samplers.start(sampler, grid, jnp.asarray(grid.init_scale) * x, keys, index)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.parametrize("cfg", [EVEN, ZERO])
@pytest.mark.parametrize("steps", [1, 5])
def test_a_known_sample_is_found_exactly_in_any_number_of_steps(name, cfg, steps):
    """A Gaussian without width: the flow's lines are straight, and every solver is exact."""
    grid, state = begin(name, cfg, steps)
    x = run(name, grid, state, 0.7, 0.0).x
    np.testing.assert_allclose(x, jnp.full_like(x, 0.7), atol=1e-6)


def error(name, cfg, steps):
    """Of a wide Gaussian: the flow maps x to mean + std (x - alpha mean) / sqrt(alpha^2 std^2 +
    sigma^2)."""
    mean, std = 0.5, 2.0
    grid, state = begin(name, cfg, steps)
    first = (grid.alpha[0], grid.sigma[0])
    spread = np.hypot(first[0] * std, first[1])
    exact = mean + std * (state.x - first[0] * mean) / spread
    return float(abs(run(name, grid, state, mean, std).x - exact).max())


@pytest.mark.parametrize("name", ["ddim", "euler"])
@pytest.mark.parametrize("cfg", [EVEN, ZERO])
def test_a_gaussian_is_reached_at_the_first_order(name, cfg):
    coarse, fine = error(name, cfg, 50), error(name, cfg, 200)
    # A quarter of the error at four times the steps (measured 3.84 to 3.86).
    assert 3.6 < coarse / fine < 4.4
    assert fine < 0.03


@pytest.mark.parametrize("name", ["dpmpp_2m_karras", "unipc_karras"])
def test_a_gaussian_is_reached_at_the_second_order(name):
    """A sixteenth or less of the error (measured 1/21 and 1/461), and far less than Euler's.

    On Karras' levels, whose last step is small: it is of first order in both solvers.
    """
    coarse, fine = error(name, ZERO, 50), error(name, ZERO, 200)
    assert coarse / fine > 16
    assert fine < 0.2 * error("euler", ZERO, 200)


@pytest.mark.parametrize("cfg", [EVEN, ZERO])
def test_ancestral_euler_is_ddpm(cfg):
    """Two forms of one posterior: DDIM with all its noise, and Euler down and noise up again."""
    grid, state = begin("euler_a", cfg, 5)
    x = run("euler_a", grid, state, 0.5, 0.4).x
    np.testing.assert_allclose(x, run("ddim", grid, state, 0.5, 0.4, eta=1.0).x, atol=2e-6)


def test_tcd_without_noise_is_ddim():
    """On TCD's own points."""
    sampler = samplers.tcd(eta=0)
    grid = sampler.grid(EVEN, 4)
    state = samplers.start(sampler, grid, NOISE)
    x = samplers.sample(gaussian(0.5, 0.4), sampler, grid, state).x
    expected = run("ddim", grid, state, 0.5, 0.4).x
    np.testing.assert_allclose(x, expected, atol=2e-6)


def test_full_noise_spreads_a_gaussian_as_ancestral_sampling_does():
    """eta = 1 is DDPM: given x0 and x, the next sample is N(posterior mean, posterior variance)."""
    std, steps = 0.4, 100
    grid, state = begin("ddim", ZERO, steps, named.normal(KEYS, (4096,)))
    x = run("ddim", grid, state, 0.5, std, eta=1.0).x
    variance = 1.0
    for a, s, a2, s2 in zip(*(c.astype(float) for c in grid[1:5])):
        step = (a / a2) ** 2  # the forward process from then to now: x = sqrt(step) x' + noise
        of_x0, of_x = a2 * (1 - step) / s**2, np.sqrt(step) * s2**2 / s**2  # DDPM, eq. 7
        gain = of_x0 * std**2 * a / (a**2 * std**2 + s**2) + of_x
        variance = gain**2 * variance + s2**2 / s**2 * (1 - step)
    # 8192 draws: standard errors 0.0041 and 0.0029.
    assert abs(x.mean() - 0.5) < 0.013 and abs(x.std() - variance**0.5) < 0.009
    assert abs(variance**0.5 - std) < 0.04
    assert abs(np.corrcoef(x[0], x[1])[0, 1]) < 0.06  # each sample has its own noise
    plain = run("ddim", grid, state, 0.5, std).x
    assert abs(np.corrcoef(x[0], plain[0])[0, 1]) < 0.3  # and the start is forgotten


@pytest.mark.parametrize(
    "name, eta",
    [("ddim", 0.0), ("ddim", 0.7), ("euler", 0.0), ("dpmpp_2m_sde", 0.0), ("unipc", 0.0)],
)
def test_chunks_make_the_same_chain(name, eta):
    """Bit for bit, also where the last chunk asks for more steps than are left."""
    grid, state = begin(name, ZERO, 10)
    whole = run(name, grid, state, 0.5, 0.4, eta=eta)
    for _ in range(4):
        state = run(name, grid, state, 0.5, 0.4, k=3, eta=eta)
    assert int(state.index) == int(whole.index) == 10
    assert (np.asarray(state.x) == np.asarray(whole.x)).all()
    again = run(name, grid, state, 0.5, 0.4, k=3, eta=eta)
    assert (again.x == state.x).all() and int(again.index) == 10


def test_a_sample_in_a_batch_equals_the_sample_alone():
    grid, state = begin("ddim", ZERO, 5)
    both = run("ddim", grid, state, 0.5, 0.4, eta=1.0).x
    for i in range(2):
        alone = begin("ddim", ZERO, 5, NOISE[i : i + 1], KEYS[i : i + 1])[1]
        assert (run("ddim", grid, alone, 0.5, 0.4, eta=1.0).x[0] == both[i]).all()


def test_start_strength_and_eta_compile_once():
    traces, evaluated = [], []

    def model(x, point):
        traces.append(1)
        jax.debug.callback(lambda: evaluated.append(1))
        return 0.5 * x

    sampler = samplers.ddim()
    grid = sampler.grid(EVEN, 10)

    @jax.jit
    def chain(strength, eta):
        index = samplers.start_index(10, strength)
        x = samplers.renoise(grid, index, jnp.ones_like(NOISE), NOISE)
        state = samplers.start(sampler, grid, x, KEYS, index)
        return samplers.sample(samplers.denoiser(model, "v"), samplers.ddim(eta), grid, state)

    for strength, run_steps in ((0.3, 3), (1.0, 10), (0.58, 5), (0.0, 0)):
        evaluated.clear()
        end = chain(strength, strength)
        jax.effects_barrier()
        assert int(end.index) == 10
        assert len(evaluated) == run_steps  # what is skipped is not evaluated
    assert (end.x == 1).all()  # strength 0 gives back what it was given
    assert len(traces) == 1 and chain._cache_size() == 1


def test_strength_counts_as_people_count():
    assert [int(samplers.start_index(25, s)) for s in (1.0, 0.6, 0.3, 0.0)] == [0, 10, 18, 25]
    assert int(samplers.start_index(100, 0.29)) == 71  # 0.29 * 100 is 28.999... in float64
    assert int(samplers.start_index(10, 7.0)) == 0 and int(samplers.start_index(10, -1.0)) == 10


def test_zero_terminal_snr_is_finite_in_every_prediction():
    # An eps output says nothing at zero signal: the hard case, for every sampler.
    cases = [("eps", name) for name in samplers.SAMPLERS if "karras" not in name]
    for kind, name in [*cases, ("v", "ddim"), ("x0", "euler")]:
        grid, state = begin(name, ZERO, 4)
        denoise = samplers.denoiser(lambda x, point: 0.3 * x, kind)
        end = samplers.sample(denoise, samplers.get(name)(), grid, state)
        assert jnp.isfinite(end.x).all(), (kind, name)


def test_half_precision_networks_are_sampled_in_float32():
    grid, state = begin("ddim", EVEN, 4, NOISE.astype(jnp.bfloat16))
    denoise = samplers.denoiser(lambda x, point: x.astype(jnp.bfloat16), "v")
    assert samplers.sample(denoise, samplers.ddim(), grid, state).x.dtype == jnp.float32


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match=r"unknown sampler 'eulr'.*did you mean 'euler'"):
        samplers.get("eulr")
    grid, state = begin("ddim", EVEN, 4, keys=None)
    with pytest.raises(ValueError, match="start its chain with keys"):
        samplers.sample(gaussian(0.0, 1.0), samplers.ddim(0.5), grid, state)
    run_without = samplers.sample(gaussian(0.0, 1.0), samplers.ddim(), grid, state)
    assert run_without.keys is None


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: schedules.consistency_grid(EVEN, 51), "distilled from 50 takes 1..50"),
        (lambda: schedules.consistency_grid(EVEN, 4, 2000), "this schedule has 1000"),
        (lambda: schedules.trajectory_grid(EVEN, 4, eta=1.5), "from 0 to 1, not 1.5"),
        (lambda: schedules.multistep_grid(EVEN, 1000), "this sampler takes 1..999"),
    ],
)
def test_grids_that_cannot_be_are_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_grids_chain_where_steps_divide():
    for cfg in (EVEN, ZERO):
        grid = schedules.ddim_grid(cfg, 20)
        np.testing.assert_array_equal(grid.alpha[1:], grid.alpha_next[:-1])
        assert grid.alpha_next[-1] == 1 and grid.sigma_next[-1] == 0


@pytest.mark.parametrize("name", list(samplers.SAMPLERS))
def test_gradients_through_a_chain_are_those_of_differences(name):
    """The score of a sample by its first noise, as examples/noise_gradient.py takes it."""
    grid, state = begin(name, EVEN, 4)
    denoise = samplers.denoiser(lambda x, point: jnp.tanh(x), "v")

    def score(x):
        return samplers.sample(denoise, samplers.get(name)(), grid, state._replace(x=x)).x.mean()

    along = jax.random.normal(jax.random.key(5), state.x.shape)
    slope = jnp.vdot(jax.grad(score)(state.x), along)
    step = 1e-2
    differences = (score(state.x + step * along) - score(state.x - step * along)) / (2 * step)
    np.testing.assert_allclose(slope, differences, rtol=2e-2, atol=2e-4)
