"""Discrete noise schedules: from a `ScheduleConfig` to the numbers of training and of each step.

All arithmetic is float64 on the host, rounded to float32 once at the end; the results are small
numpy arrays that a jitted program holds as constants.

The schedules, spacings and their rounding are those of diffusers' schedulers (read in 0.42), which
public checkpoints are published for. The rescale to zero terminal signal is arXiv 2305.08891,
algorithm 1.
"""

from __future__ import annotations

import functools

import numpy as np

from mv2_jax.config import ScheduleConfig
from mv2_jax.diffusion.names import SPACINGS
from mv2_jax.diffusion.points import Grid
from mv2_jax.lookup import one_of

KINDS = ("linear", "scaled_linear")

# Sigma-space samplers divide by the signal. With zero terminal SNR the last step's squared signal
# is taken as this instead of 0 (the value of diffusers' Euler): its sigma is then 4096.
SMALLEST_SIGNAL = 2.0**-24


@functools.lru_cache
def _squared_signal(cfg: ScheduleConfig) -> np.ndarray:
    """alpha^2 `[train_steps]` in float64."""
    one_of(cfg.kind, KINDS, "schedule")
    if cfg.kind == "linear":
        betas = np.linspace(cfg.beta_start, cfg.beta_end, cfg.train_steps)
    else:
        betas = np.linspace(cfg.beta_start**0.5, cfg.beta_end**0.5, cfg.train_steps) ** 2
    squared = np.cumprod(1.0 - betas)
    if cfg.zero_terminal_snr:
        alpha = np.sqrt(squared)
        # Shift the last to zero, then stretch so that the first stays where it was.
        squared = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
    squared.setflags(write=False)  # it is cached: nobody may change it
    return squared


def alphas_cumprod(cfg: ScheduleConfig) -> np.ndarray:
    """Squared signal alpha^2 of every training timestep, `[train_steps]` float32, falling.

    Raises:
        ValueError: `cfg.kind` is unknown.
    """
    return _squared_signal(cfg).astype(np.float32)


def signal_and_noise(cfg: ScheduleConfig) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) of every training timestep, `[train_steps]` float32 each."""
    squared = _squared_signal(cfg)
    return np.sqrt(squared).astype(np.float32), np.sqrt(1.0 - squared).astype(np.float32)


def k_sigmas(cfg: ScheduleConfig) -> np.ndarray:
    """sigma / alpha of every training timestep, `[train_steps]` float32, rising.

    The noise of the variance-exploding form; infinite at a zero terminal SNR.
    """
    squared = _squared_signal(cfg)
    with np.errstate(divide="ignore"):
        return np.sqrt((1.0 - squared) / squared).astype(np.float32)


def timesteps(
    cfg: ScheduleConfig, steps: int, *, fractional: bool = False, ends: bool = False
) -> np.ndarray:
    """The timesteps that sampling visits, `[steps]` float64, falling.

    `fractional` keeps the fractions of "linspace" (diffusers' Euler does, its DDIM rounds).
    `ends` counts the clean end as one more point of "leading" and "linspace", and leaves it out
    (diffusers' multistep solvers do).
    "leading" at 25 steps of 1000 starts at 961 with offset 1, the other two at 999.

    Raises:
        ValueError: the spacing is unknown, `steps` is not in 1..train_steps, or the offset
            pushes the first timestep past the schedule's end.
    """
    one_of(cfg.spacing, SPACINGS, "timestep spacing")
    total = cfg.train_steps
    if not 1 <= steps <= total:
        raise ValueError(
            f"cannot sample in {steps} steps: the schedule has {total}; take 1..{total}"
        )
    points = steps + ends
    if points > total:
        raise ValueError(f"cannot sample in {steps} steps: this sampler takes 1..{total - 1}")
    if cfg.spacing == "linspace":
        # np.linspace(0, end, 1) is the clean end alone: diffusers does the same at one step.
        t = np.linspace(0, total - 1, points, dtype=np.float32 if fractional else np.float64)
        t = (t if fractional else np.round(t))[::-1].astype(np.float64)[:steps]
    elif cfg.spacing == "leading":
        t = np.arange(points)[::-1][:steps] * float(total // points) + cfg.steps_offset
    else:
        # Cut: where the division leaves a rest, arange runs on to 0, which diffusers keeps and asks
        # its network for timestep -1 (at 61 steps, for one).
        t = np.round(np.arange(total, 0, -total / steps))[:steps] - 1.0
    if t[0] > total - 1:
        raise ValueError(
            f"{steps} 'leading' steps with steps_offset {cfg.steps_offset} start at timestep "
            f"{t[0]:.0f}, past the last one, {total - 1}; take fewer steps or spacing 'trailing'"
        )
    return t


def ddim_grid(cfg: ScheduleConfig, steps: int) -> Grid:
    """The grid of diffusers' DDIM.

    A step goes from t to t - train_steps // steps, which is the next visited timestep only where
    the spacing is even (always in "leading"; in "trailing" where `steps` divides train_steps).
    Elsewhere a step lands a little off the next one's start, as in diffusers; `euler_grid` chains.
    Past timestep 0 lies no noise at all (`final_alpha_one`) or timestep 0's own noise.
    The plain start is standard normal noise.

    Raises:
        ValueError: as `timesteps`.
    """
    squared = _squared_signal(cfg)
    t = timesteps(cfg, steps)
    index = t.astype(np.int64)
    then = index - cfg.train_steps // steps
    final = 1.0 if cfg.final_alpha_one else squared[0]
    landing = np.where(then >= 0, squared[np.maximum(then, 0)], final)
    return _grid(t, squared[index], landing, 1.0)


def euler_grid(cfg: ScheduleConfig, steps: int) -> Grid:
    """The grid of diffusers' Euler, whose steps chain and end without noise.

    sigma / alpha is interpolated linearly over timesteps. The plain start has the noise of the
    first sigma alone ("linspace", "trailing"), or unit variance ("leading").

    Raises:
        ValueError: as `timesteps`.
    """
    t = timesteps(cfg, steps, fractional=True)
    k = np.interp(t, np.arange(cfg.train_steps), _finite_k(cfg))
    visited = 1.0 / (1.0 + k**2)
    scale = 1.0 if cfg.spacing == "leading" else (1.0 - visited[0]) ** 0.5
    return _chain(t, visited, 1.0, scale)


def multistep_grid(cfg: ScheduleConfig, steps: int, karras: bool = False) -> Grid:
    """The grid of diffusers' DPMSolverMultistep and UniPC, whose steps chain and end without noise.

    `karras` takes the noise levels of arXiv 2206.00364, eq. 5 with rho 7, between the schedule's
    ends, whatever the spacing says; the network is told the nearest whole timestep, as in
    diffusers (k-diffusion keeps the fraction). The plain start is standard normal noise.

    Raises:
        ValueError: as `timesteps`.
    """
    k, total = _finite_k(cfg), cfg.train_steps
    t = timesteps(cfg, steps, ends=True)
    if karras:
        ramp = np.linspace(0, 1, steps)
        levels = (k[-1] ** (1 / 7) + ramp * (k[0] ** (1 / 7) - k[-1] ** (1 / 7))) ** 7
        t = np.round(np.interp(np.log(levels), np.log(k), np.arange(total)))
    else:
        levels = k[t.astype(np.int64)]
    return _chain(t, 1.0 / (1.0 + levels**2), 1.0)


def consistency_grid(cfg: ScheduleConfig, steps: int, original_steps: int = 50) -> Grid:
    """The grid of diffusers' LCM: of the distilled solver's own points, evenly chosen ones.

    The spacing and its offset are not asked. The plain start is standard normal noise.

    Raises:
        ValueError: `steps` is not in 1..original_steps, or those are more than the schedule has.
    """
    t = _distilled(cfg, steps, original_steps)
    return _chain(t, _squared_signal(cfg)[t], 1.0)


def trajectory_grid(
    cfg: ScheduleConfig, steps: int, eta: float = 0.3, original_steps: int = 50
) -> Grid:
    """The grid of diffusers' TCD: `consistency_grid`'s points, and how far past each a step jumps.

    The last step lands on timestep 0's own noise, or on none (`final_alpha_one`).

    Raises:
        ValueError: as `consistency_grid`, or `eta` is not in 0..1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"TCD's eta goes from 0 to 1, not {eta}")
    squared, t = _squared_signal(cfg), _distilled(cfg, steps, original_steps)
    grid = _chain(t, squared[t], 1.0 if cfg.final_alpha_one else squared[0])
    # A little is added, so that 0.7 of 500 is 350 in any precision.
    past = squared[np.floor((1.0 - eta) * np.append(t[1:], 0) + 1e-6).astype(np.int64)]
    if cfg.final_alpha_one:
        past[-1] = 1.0
    kept = grid.alpha_next * np.sqrt((1.0 - past) / past)
    return grid._replace(kept=kept.astype(np.float32))


def _finite_k(cfg: ScheduleConfig) -> np.ndarray:
    """sigma / alpha `[train_steps]` in float64, with a smallest signal where there is none."""
    squared = _squared_signal(cfg)
    if cfg.zero_terminal_snr:
        squared = np.append(squared[:-1], SMALLEST_SIGNAL)
    return np.sqrt((1.0 - squared) / squared)


def _distilled(cfg: ScheduleConfig, steps: int, original_steps: int) -> np.ndarray:
    """Whole timesteps `[steps]`, falling, of the `original_steps` of the distilled solver."""
    if not 1 <= original_steps <= cfg.train_steps:
        raise ValueError(
            f"original_steps is {original_steps}; this schedule has {cfg.train_steps} steps"
        )
    if not 1 <= steps <= original_steps:
        raise ValueError(
            f"cannot sample in {steps} steps: a network distilled from {original_steps} takes "
            f"1..{original_steps}"
        )
    all_steps = np.arange(original_steps, 0, -1) * (cfg.train_steps // original_steps) - 1
    return all_steps[np.floor(np.linspace(0, original_steps, steps, endpoint=False)).astype(int)]


def _chain(t: np.ndarray, visited: np.ndarray, end: float, init_scale: float = 1.0) -> Grid:
    """A Grid whose steps land where the next one starts, and the last at squared signal `end`."""
    return _grid(t, visited, np.append(visited[1:], end), init_scale)


def _grid(t: np.ndarray, squared: np.ndarray, landing: np.ndarray, init_scale: float) -> Grid:
    """A Grid from float64 timesteps and squared signals."""
    columns = (t, squared**0.5, (1 - squared) ** 0.5, landing**0.5, (1 - landing) ** 0.5)
    return Grid(*(c.astype(np.float32) for c in columns), init_scale=np.float32(init_scale))
