import dataclasses

import numpy as np
import pytest

from mv2_jax.config import ScheduleConfig
from mv2_jax.diffusion import schedules

diffusers = pytest.importorskip("diffusers")

PLAIN = ScheduleConfig()


def oracle(cls, cfg: ScheduleConfig, **more):
    return cls(
        num_train_timesteps=cfg.train_steps,
        beta_start=cfg.beta_start,
        beta_end=cfg.beta_end,
        beta_schedule=cfg.kind,
        steps_offset=cfg.steps_offset,
        timestep_spacing=cfg.spacing,
        rescale_betas_zero_snr=cfg.zero_terminal_snr,
        **more,
    )


@pytest.mark.parametrize("kind", schedules.KINDS)
@pytest.mark.parametrize("zero", [False, True])
def test_alphas_equal_diffusers(kind, zero):
    cfg = dataclasses.replace(PLAIN, kind=kind, zero_terminal_snr=zero)
    mine = schedules.alphas_cumprod(cfg)
    theirs = oracle(diffusers.DDIMScheduler, cfg).alphas_cumprod.numpy()
    assert mine.dtype == np.float32
    # diffusers multiplies in float32: measured 4.8e-7.
    np.testing.assert_allclose(mine, theirs, atol=1e-6)
    assert (np.diff(mine) < 0).all()
    assert (mine[-1] == 0) == zero


def test_zero_terminal_snr_keeps_the_first_step_and_its_sigma_is_infinite():
    cfg = dataclasses.replace(PLAIN, zero_terminal_snr=True)
    np.testing.assert_allclose(
        schedules.alphas_cumprod(cfg)[0], schedules.alphas_cumprod(PLAIN)[0], rtol=1e-7
    )
    alpha, sigma = schedules.signal_and_noise(cfg)
    assert (alpha[-1], sigma[-1]) == (0, 1)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, atol=2e-7)
    k = schedules.k_sigmas(cfg)
    assert np.isinf(k[-1]) and np.isfinite(k[:-1]).all()


@pytest.mark.parametrize("kind, signal", [("linear", 0.0397), ("scaled_linear", 0.0683)])
def test_the_last_signal_is_the_known_one(kind, signal):
    alpha, _ = schedules.signal_and_noise(dataclasses.replace(PLAIN, kind=kind))
    assert round(float(alpha[-1]), 4) == signal


@pytest.mark.parametrize("spacing", schedules.SPACINGS)
def test_timesteps_equal_diffusers_at_every_step_count(spacing):
    """All counts: the rounding differs at odd ones if it differs at all."""
    cfg = dataclasses.replace(PLAIN, spacing=spacing)
    ddim, euler = (
        oracle(cls, cfg) for cls in (diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler)
    )
    too_long = 0
    for steps in range(1, 1000, 3):
        for scheduler, fractional in ((ddim, False), (euler, True)):
            scheduler.set_timesteps(steps)
            theirs = scheduler.timesteps.numpy()
            mine = schedules.timesteps(cfg, steps, fractional=fractional)
            too_long += len(theirs) > steps
            assert mine.shape == (steps,) and mine.min() >= 0
            np.testing.assert_array_equal(mine, theirs[:steps])
    # diffusers' trailing spacing has one timestep too many, -1, at some counts.
    assert (too_long > 0) == (spacing == "trailing")


def test_the_first_timestep_is_the_known_one():
    first = {
        s: schedules.timesteps(dataclasses.replace(PLAIN, spacing=s), 25)[0]
        for s in schedules.SPACINGS
    }
    assert first == {"leading": 961, "linspace": 999, "trailing": 999}


@pytest.mark.parametrize("final_alpha_one", [False, True])
def test_ddim_ends_where_it_is_told(final_alpha_one):
    for spacing in schedules.SPACINGS:
        cfg = dataclasses.replace(PLAIN, spacing=spacing, final_alpha_one=final_alpha_one)
        grid = schedules.ddim_grid(cfg, 25)
        scheduler = oracle(diffusers.DDIMScheduler, cfg, set_alpha_to_one=final_alpha_one)
        last = float(scheduler.final_alpha_cumprod) ** 0.5
        assert abs(grid.alpha_next[-1] - last) < 1e-7
        assert grid.init_scale == scheduler.init_noise_sigma == 1.0


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("spacing", schedules.SPACINGS)
def test_euler_grid_equals_diffusers_sigmas(spacing, zero):
    cfg = dataclasses.replace(PLAIN, spacing=spacing, zero_terminal_snr=zero)
    grid = schedules.euler_grid(cfg, 25)
    scheduler = oracle(diffusers.EulerDiscreteScheduler, cfg)
    scheduler.set_timesteps(25)
    sigmas = scheduler.sigmas.numpy()
    # diffusers' float32 products drift where a zero-SNR schedule nears its end: measured 2e-5.
    np.testing.assert_allclose(grid.sigma / grid.alpha, sigmas[:-1], rtol=5e-5)
    np.testing.assert_allclose(grid.sigma_next / grid.alpha_next, sigmas[1:], rtol=5e-5)
    # The start in the variance-preserving form is theirs over sqrt(sigma^2 + 1).
    start = scheduler.init_noise_sigma / (sigmas[0] ** 2 + 1) ** 0.5
    assert abs(grid.init_scale - float(start)) < 1e-6
    np.testing.assert_array_equal(grid.alpha[1:], grid.alpha_next[:-1])


@pytest.mark.parametrize(
    ("change", "steps", "message"),
    [
        ({"kind": "scaled_liner"}, 25, "did you mean 'scaled_linear'"),
        ({"spacing": "trailling"}, 25, "did you mean 'trailing'"),
        ({}, 0, r"in 0 steps.*1\.\.1000"),
        ({}, 1001, r"in 1001 steps.*1\.\.1000"),
        ({}, 1000, "start at timestep 1000, past the last one, 999"),
    ],
)
def test_impossible_schedules_are_explained(change, steps, message):
    cfg = dataclasses.replace(PLAIN, **change)
    for grid in (schedules.ddim_grid, schedules.euler_grid):
        with pytest.raises(ValueError, match=message):
            grid(cfg, steps)
