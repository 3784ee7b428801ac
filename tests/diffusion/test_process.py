"""EDM and rectified flow beside diffusers' schedulers, on a fixed fake network, step by step.

The discrete schedules are in test_parity.py.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax import config
from mv2_jax.config import ScheduleConfig
from mv2_jax.diffusion import free_init, keys, noise_prior, process, samplers
from mv2_jax.diffusion.process import EDM, Flow

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

SHAPE = (2, 3, 5, 4)
KEYS = keys.seeds([4, 8])
EPS = np.array(jax.random.normal(jax.random.key(0), SHAPE))
CLEAN = np.array(jax.random.normal(jax.random.key(1), SHAPE))
COSXL = process.PROCESSES["cosxl"]
EDMS = {
    "paper": EDM(),
    "v": EDM(output="v"),
    "exponential": EDM(sigma_max=120.0, levels="exponential"),
    "cosxl": COSXL,
}
FLOWS = {
    "plain": Flow(),
    "sd3": Flow(shift=3.0),
    "mu": Flow(mu=process.dynamic_mu(1024)),
    "flux": Flow(mu=process.dynamic_mu(4096), spacing="trailing"),
    "schnell": Flow(spacing="trailing"),
}
STEPS = (1, 2, 13, 28)
TOLERANCE = 4e-6  # of the largest number; Euler measured at 1.5e-6, EDM's at 6.7e-7


def noise(step):
    """What our samplers draw in a step."""
    return keys.normal(keys.fold(keys.fold(KEYS, "sampler"), step), SHAPE[1:])


NOISE = [noise(step) for step in range(max(STEPS))]


def network(x, t, xp):
    """Neither linear in x nor the same at two timesteps, whatever their scale."""
    return 0.6 * x * xp.cos(t / 200.0 + t / 3.0) + 0.5 * xp.sin(2.0 * x + t / 300.0)


def edm_oracle(value, steps, name="EDMEulerScheduler", **more):
    scheduler = getattr(diffusers, name)(
        sigma_min=value.sigma_min,
        sigma_max=value.sigma_max,
        sigma_data=value.sigma_data,
        sigma_schedule=value.levels,
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[value.output],
        rho=value.rho,
        **more,
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()  # in float32 theirs is 5e-5 off in two steps
    return scheduler


def flow_oracle(value, steps, name="FlowMatchEulerDiscreteScheduler"):
    dynamic = {"use_dynamic_shifting": value.mu is not None}
    scheduler = getattr(diffusers, name)(shift=value.shift, **dynamic)
    given = {"mu": value.mu} if value.mu is not None else {}
    if value.spacing == "trailing":
        given["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    scheduler.set_timesteps(steps, **given)
    return scheduler


def solver_oracle(name, grid, **more):
    """diffusers' solver over our points of a flow: its own are others."""
    scheduler = getattr(diffusers, name)(
        use_flow_sigmas=True, prediction_type="flow_prediction", **more
    )
    scheduler.set_timesteps(grid.steps)
    scheduler.sigmas = torch.from_numpy(np.append(np.float64(grid.sigma), 0))
    scheduler.timesteps = torch.from_numpy(grid.t)
    return scheduler


def our_scale(scheduler, value, x, i):
    """Their sample before step i, as the network sees it; x0 at the end."""
    if isinstance(value, Flow) or i == len(scheduler.timesteps):
        return x.numpy()
    return (x / (scheduler.sigmas[i] ** 2 + value.sigma_data**2) ** 0.5).numpy()


def theirs(scheduler, value, x, first=0):
    found = []
    for i, t in enumerate(scheduler.timesteps[first:], start=first):
        scaled = scheduler.scale_model_input(x, t) if isinstance(value, EDM) else x
        output = torch.from_numpy(network(scaled.numpy(), np.float32(t), np))
        x = scheduler.step(output, t, x).prev_sample
        found.append(our_scale(scheduler, value, x, i + 1))
    return np.stack(found)


def ours(name, value, grid, x, index=0):
    """Every sample, step by step as `samplers.sample` goes, which is compared with it below."""
    sampler = samplers.make(name)
    denoise = samplers.denoiser(lambda x, point: network(x, point.t, jnp), value.prediction)
    state, found = samplers.start(sampler, grid, jnp.asarray(x)), []
    x, memory = state.x, state.memory
    for i in range(index, grid.steps):
        now = samplers.point_at(grid, i)
        then = samplers.Point(
            now.t, jnp.asarray(grid.alpha_next)[i], jnp.asarray(grid.sigma_next)[i]
        )
        x, memory = sampler.step(x, denoise(x, now), now, then, memory, lambda i=i: NOISE[i])
        found.append(np.asarray(x))
    return np.stack(found)


def agree(mine, others, tolerance=TOLERANCE):
    assert mine.shape == others.shape and others.std() > 0.05
    error = np.abs(mine - others).max() / np.abs(others).max()
    print(f"{error:.1e}")
    assert error < tolerance


@pytest.fixture
def same_noise(monkeypatch):
    """Makes their schedulers draw our noise."""
    draws = []

    def draw(*args, **kwargs):
        draws.append(NOISE[len(draws)])
        return torch.from_numpy(np.array(draws[-1]))

    for name in ("EDMDPMSolverMultistepScheduler", "FlowMatchLCMScheduler",
                 "DPMSolverMultistepScheduler"):  # fmt: skip
        monkeypatch.setattr(sys.modules[getattr(diffusers, name).__module__], "randn_tensor", draw)
    return draws


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", EDMS)
def test_edm_euler(kind, steps):
    value = EDMS[kind]
    if value.levels == "exponential" and steps == 1:
        pytest.skip("their one exponential step begins at the smallest level")
    grid, scheduler = process.grid(value, steps), edm_oracle(value, steps)
    np.testing.assert_allclose(grid.t, scheduler.timesteps.numpy(), rtol=3e-7, atol=3e-7)
    x = torch.tensor(EPS).double() * scheduler.init_noise_sigma
    mine = ours("euler", value, grid, grid.init_scale * EPS)
    agree(mine, theirs(scheduler, value, x))
    np.testing.assert_allclose(ours("ddim", value, grid, grid.init_scale * EPS), mine, atol=2e-5)


@pytest.mark.parametrize("steps", (2, 13, 28))
@pytest.mark.parametrize("kind", EDMS)
@pytest.mark.parametrize("sde", [False, True])
def test_edm_dpm_solver(kind, steps, sde, same_noise):
    value, name = EDMS[kind], "EDMDPMSolverMultistepScheduler"
    grid = process.grid(value, steps)
    more = {"algorithm_type": "sde-dpmsolver++"} if sde else {}
    scheduler = edm_oracle(value, steps, name, **more)
    x = torch.tensor(EPS).double() * scheduler.init_noise_sigma
    mine = ours("dpmpp_2m_sde" if sde else "dpmpp_2m", value, grid, grid.init_scale * EPS)
    # Their levels are made in float32 (measured 1.1e-5).
    agree(mine, theirs(scheduler, value, x), 3e-5)


@pytest.mark.parametrize("name, value", [("unipc", FLOWS["sd3"]), ("dpmpp_2m_sde", COSXL)])
def test_the_loop_makes_the_same_steps(name, value):
    grid, sampler = process.grid(value, 5), samplers.make(name)
    denoise = samplers.denoiser(lambda x, point: network(x, point.t, jnp), value.prediction)
    state = samplers.start(sampler, grid, jnp.asarray(EPS), KEYS)
    whole = samplers.sample(denoise, sampler, grid, state).x
    assert np.isfinite(whole).all()
    np.testing.assert_allclose(whole, ours(name, value, grid, EPS)[-1], atol=5e-6)


def test_karras_levels_over_edm_are_its_own():
    for name in ("dpmpp_2m_karras", "unipc_karras"):
        made = samplers.make(name).grid(dataclasses.replace(COSXL, rho=7.0), 5)
        own = process.grid(dataclasses.replace(COSXL, levels="karras"), 5)
        np.testing.assert_array_equal(made.sigma, own.sigma)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", FLOWS)
def test_flow_match_euler(kind, steps):
    value = FLOWS[kind]
    grid, scheduler = process.grid(value, steps), flow_oracle(value, steps)
    np.testing.assert_allclose(grid.t, scheduler.timesteps.numpy(), rtol=3e-7)
    mine = ours("euler", value, grid, grid.init_scale * EPS)
    agree(mine, theirs(scheduler, value, torch.tensor(EPS)))
    np.testing.assert_allclose(ours("ddim", value, grid, EPS), mine, atol=2e-5)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_flow_match_lcm(kind, same_noise):
    value = FLOWS[kind]
    grid = process.grid(value, 4)
    scheduler = diffusers.FlowMatchLCMScheduler()
    scheduler.set_timesteps(sigmas=grid.sigma)
    agree(ours("consistency", value, grid, EPS), theirs(scheduler, value, torch.tensor(EPS)))


@pytest.mark.parametrize("steps", (2, 13, 28))
@pytest.mark.parametrize("kind", ["plain", "sd3", "flux"])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_multistep_solvers_over_flow(name, kind, steps, same_noise):
    value = FLOWS[kind]
    grid = samplers.make(name).grid(value, steps)
    if name == "unipc":
        # It has the log of 1 - sigma, and its limit is slow: over its own 1 - 1e-6 it is 1e-4 off.
        grid.sigma[0], grid.alpha[0] = 1 - 1e-3, 1e-3
        scheduler = solver_oracle("UniPCMultistepScheduler", grid)
    else:
        more = {"algorithm_type": "sde-dpmsolver++"} if "sde" in name else {}
        scheduler = solver_oracle("DPMSolverMultistepScheduler", grid, **more)
    mine = ours(name, value, grid, EPS)
    agree(mine, theirs(scheduler, value, torch.tensor(EPS).double()))


@pytest.mark.parametrize("kind", ["paper", "cosxl"])
@pytest.mark.parametrize("strength", [0.3, 0.6])
def test_partial_chains_of_edm(kind, strength):
    value, steps = EDMS[kind], 13
    first = steps - int(steps * strength)
    grid, scheduler = process.grid(value, steps), edm_oracle(value, steps)
    scheduler.set_begin_index(first)
    t = scheduler.timesteps[first : first + 1].repeat(SHAPE[0])
    x = scheduler.add_noise(torch.tensor(CLEAN), torch.tensor(EPS), t)
    assert samplers.start_index(steps, strength) == first
    mine = samplers.renoise(grid, first, jnp.asarray(CLEAN), jnp.asarray(EPS))
    np.testing.assert_allclose(mine, our_scale(scheduler, value, x, first), atol=2e-6)
    agree(ours("euler", value, grid, mine, first), theirs(scheduler, value, x, first))


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize("strength", [0.3, 0.6])
def test_partial_chains_of_flow(kind, strength):
    value, steps = FLOWS[kind], 13
    first = steps - int(steps * strength)
    grid, scheduler = process.grid(value, steps), flow_oracle(value, steps)
    scheduler.set_begin_index(first)
    t = scheduler.timesteps[first : first + 1].repeat(SHAPE[0])
    x = scheduler.scale_noise(torch.tensor(CLEAN), t, torch.tensor(EPS))
    mine = samplers.renoise(grid, first, jnp.asarray(CLEAN), jnp.asarray(EPS))
    np.testing.assert_allclose(mine, x.numpy(), atol=1e-6)
    agree(ours("euler", value, grid, mine, first), theirs(scheduler, value, x, first))


ALL = {**EDMS, **FLOWS, "sd": ScheduleConfig()}


@pytest.mark.parametrize("kind", ALL)
def test_training_visits_what_sampling_visits(kind):
    """The noise at every position is that of one process: t says it, rising, from end to end."""
    value = process.of(ALL[kind])
    u = jnp.linspace(0.0, 1.0, 1001)
    point = value.at(u)
    assert all(part.shape == u.shape for part in point[:3])
    assert (np.diff(point.k) >= 0).all() and (np.diff(point.t) >= 0).all()
    grid = value.grid(28)
    inside = grid.t >= float(point.t[1])
    level = np.interp(grid.t[inside], point.t[1:], np.log(point.sigma[1:]))
    np.testing.assert_allclose(level, np.log(grid.sigma[inside]), atol=3e-3)
    one = value.at(jnp.float32(0.3))
    assert one.t.shape == () and process.of(value) == value


@pytest.mark.parametrize("kind", ["paper", "cosxl", "sd3", "sd"])
def test_the_noise_prior_and_free_init_go_over_any_process(kind):
    value = process.of(ALL[kind])
    grid = samplers.make("ddim").grid(ALL[kind], 5)
    x0, eps, fresh = (jnp.asarray(a)[:, None] for a in (CLEAN, EPS, EPS[::-1].copy()))
    noised = noise_prior.initial(grid, eps, x0)
    np.testing.assert_allclose(noised, samplers.renoise(grid, 0, x0, eps), atol=1e-6)
    plain = noise_prior.initial(grid, eps, x0, 0.0)
    np.testing.assert_array_equal(plain, grid.init_scale * eps)
    all_low, none = np.ones(x0.shape[1:4], np.float32), np.zeros(x0.shape[1:4], np.float32)
    again = free_init.restart(grid, x0, eps, fresh, all_low)
    np.testing.assert_allclose(again, samplers.renoise(grid, 0, x0, eps), atol=2e-6)
    again = free_init.restart(grid, x0, eps, fresh, none)
    np.testing.assert_allclose(again, grid.init_scale * fresh, atol=2e-6)
    assert value.grid(5).steps == 5


def test_configs_go_through_json():
    stage = config.StageConfig(config.UNetConfig(), COSXL, (8, 8))
    again = config.from_dict(config.to_dict(stage))
    assert again == stage and config.to_dict(stage)["schedule"]["class"] == "EDM"
    assert config.from_dict({"class": "Flow", "shift": 3.0}) == Flow(shift=3.0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: EDM(levels="kerras"), r"unknown levels of EDM 'kerras' .* mean 'karras'\?"),
        (lambda: EDM(sigma_max=0.001), "0 < sigma_min < sigma_max"),
        (lambda: Flow(spacing="leading"), "unknown spacing of Flow 'leading'"),
        (lambda: Flow(prediction="v"), "'v' is for variance-preserving processes; take 'velocity'"),
        (lambda: Flow(shift=2.0, mu=1.0), "a positive shift, or mu alone"),
        (lambda: process.of(EDM), "EDM is no process: it needs `prediction`, `at"),
        (lambda: process.of(3), "int is no process"),
        (lambda: process.of("fow"), "unknown process 'fow' .* did you mean 'flow'"),
        (lambda: process.grid(Flow(), 0), "cannot sample in 0 steps"),
        (lambda: samplers.make("lcm").grid(COSXL, 4), "over EDM take sampler 'consistency'"),
        (lambda: samplers.make("tcd").grid(Flow(), 4), "over Flow take sampler 'consistency'"),
        (lambda: samplers.make("unipc_karras").grid(Flow(), 4), "over Flow take the one without"),
        (lambda: samplers.make("math:gcd"), "what it makes is of type int, not a"),
    ],
)
def test_mistakes_are_explained(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
