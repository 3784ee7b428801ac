"""Noise schedules: from a `ScheduleConfig` to the numbers of training and of each sampling step.

All arithmetic is float64 on the host, rounded to float32 once at the end; the results are small
numpy arrays that a jitted program holds as constants.

The schedules, spacings and their rounding are those of diffusers' schedulers (read in 0.42), which
public checkpoints are published for. The rescale to zero terminal signal is arXiv 2305.08891,
algorithm 1.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from mv2_jax.config import ScheduleConfig, nearest

KINDS = ("linear", "scaled_linear")
SPACINGS = ("leading", "linspace", "trailing")

# Sigma-space samplers divide by the signal. With zero terminal SNR the last step's squared signal
# is taken as this instead of 0 (the value of diffusers' Euler): its sigma is then 4096.
SMALLEST_SIGNAL = 2.0**-24


class Grid(NamedTuple):
    """The numbers of every sampling step, `[steps]` float32 each, first step (most noise) first.

    A step goes from (alpha, sigma) to (alpha_next, sigma_next), where x = alpha * x0 + sigma * eps;
    `t` is what the network is told. Where a step ends is stored beside where it starts because
    the two need not chain: see `ddim_grid`.
    `init_scale` is the scale `[]` of the standard normal noise that plain sampling starts from.
    """

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    alpha_next: np.ndarray
    sigma_next: np.ndarray
    init_scale: np.ndarray

    @property
    def steps(self) -> int:
        return self.t.shape[0]


def _one_of(word: str, known: tuple[str, ...], what: str) -> None:
    if word not in known:
        names = ", ".join(known)
        raise ValueError(f"unknown {what} {word!r} (known: {names}){nearest(word, known)}")


@functools.lru_cache
def _squared_signal(cfg: ScheduleConfig) -> np.ndarray:
    """alpha^2 `[train_steps]` in float64."""
    _one_of(cfg.kind, KINDS, "schedule")
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


def timesteps(cfg: ScheduleConfig, steps: int, *, fractional: bool = False) -> np.ndarray:
    """The timesteps that sampling visits, `[steps]` float64, falling.

    `fractional` keeps the fractions of "linspace" (diffusers' Euler does, its DDIM rounds).
    "leading" at 25 steps of 1000 starts at 961 with offset 1, the other two at 999.

    Raises:
        ValueError: the spacing is unknown, `steps` is not in 1..train_steps, or the offset
            pushes the first timestep past the schedule's end.
    """
    _one_of(cfg.spacing, SPACINGS, "timestep spacing")
    total = cfg.train_steps
    if not 1 <= steps <= total:
        raise ValueError(
            f"cannot sample in {steps} steps: the schedule has {total}; take 1..{total}"
        )
    if cfg.spacing == "linspace":
        # np.linspace(0, end, 1) is the clean end alone: diffusers does the same at one step.
        t = np.linspace(0, total - 1, steps, dtype=np.float32 if fractional else np.float64)
        t = (t if fractional else np.round(t))[::-1].astype(np.float64)
    elif cfg.spacing == "leading":
        t = np.arange(steps)[::-1] * float(total // steps) + cfg.steps_offset
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
    squared = _squared_signal(cfg)
    if cfg.zero_terminal_snr:
        squared = np.append(squared[:-1], SMALLEST_SIGNAL)
    t = timesteps(cfg, steps, fractional=True)
    k = np.interp(t, np.arange(cfg.train_steps), np.sqrt((1.0 - squared) / squared))
    visited = 1.0 / (1.0 + k**2)
    landing = np.append(visited[1:], 1.0)
    return _grid(
        t, visited, landing, 1.0 if cfg.spacing == "leading" else (1.0 - visited[0]) ** 0.5
    )


def _grid(t: np.ndarray, squared: np.ndarray, landing: np.ndarray, init_scale: float) -> Grid:
    """A Grid from float64 timesteps and squared signals."""
    columns = (t, squared**0.5, (1 - squared) ** 0.5, landing**0.5, (1 - landing) ** 0.5)
    return Grid(*(c.astype(np.float32) for c in columns), np.float32(init_scale))
