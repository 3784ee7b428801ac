"""Processes: how a clean sample becomes noise, what the network is told of it and asked for.

A process is a value with three things in it (`Process`): the noise at every position u from 0
(clean) to 1 (noise), for training; the points that a sampler visits in n steps; and what the
network outputs. x = alpha * x0 + sigma * eps is always scaled as the network sees it, so that
nothing else scales inputs. Samplers, noise prior, partial chains, losses, FreeInit and windows know
no more of a process than this.

Here are the discrete variance-preserving schedules (a `ScheduleConfig` stands for one; with
`zero_terminal_snr` and "v" that of arXiv 2305.08891), `EDM` (arXiv 2206.00364) and `Flow`
(rectified flow, arXiv 2209.03003). One's own is a frozen dataclass of the same three things, named
`module:Class` in cascade folders and recipes: see docs/extending.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import lookup
from mv2_jax.config import ScheduleConfig
from mv2_jax.diffusion import schedules
from mv2_jax.diffusion.points import Grid, Point, chained
from mv2_jax.diffusion.prediction import Kind, Prediction
from mv2_jax.errors import InputError


@runtime_checkable
class Process(Protocol):
    """What training and sampling ask of a process.

    `prediction` is the name of what the network outputs, or a `prediction.Prediction`.
    """

    @property
    def prediction(self) -> Kind: ...

    def at(self, u: jax.Array) -> Point:
        """The noise at positions u in [0, 1], `[]` or `[B]`: each number of the Point is like u.

        sigma / alpha rises with u.
        """
        ...

    def grid(self, steps: int) -> Grid:
        """The points of a chain of so many steps; `points.chained` makes a Grid of them."""
        ...


def of(schedule: Any) -> Process:
    """The process that a stage's `schedule` stands for: itself, or that of a ScheduleConfig.

    Raises:
        InputError: it is no process.
    """
    if isinstance(schedule, ScheduleConfig):
        return Discrete(schedule)
    if isinstance(schedule, Process) and not isinstance(schedule, type):
        return schedule
    if isinstance(schedule, str):
        return of(lookup.find(schedule, PROCESSES, "process"))
    what = schedule.__name__ if isinstance(schedule, type) else type(schedule).__name__
    raise InputError(f"{what} is no process: it needs `prediction`, `at(u)` and `grid(steps)`")


def grid(schedule: Any, steps: int) -> Grid:
    """The points that a process itself visits in so many steps: a sampler's `grid`."""
    return of(schedule).grid(steps)


def grids(
    discrete: Callable[[ScheduleConfig, int], Grid], refused: str = "", instead: str = ""
) -> Callable[[Any, int], Grid]:
    """A sampler's `grid`: `discrete` for a ScheduleConfig, and any other process's own points.

    Args:
        refused: what works over discrete schedules alone, where that is so.
        instead: what to take over other processes.
    """

    def points(schedule: Any, steps: int) -> Grid:
        process = of(schedule)
        if isinstance(process, Discrete):
            return discrete(process.schedule, steps)
        if refused:
            raise InputError(
                f"{refused} works over discrete schedules alone; over {type(process).__name__} "
                f"take {instead}"
            )
        return process.grid(steps)

    return points


@dataclass(frozen=True)
class Discrete:
    """The process of a ScheduleConfig: t is a whole number from 0 to train_steps - 1."""

    schedule: ScheduleConfig

    @property
    def prediction(self) -> Kind:
        return self.schedule.prediction

    def at(self, u: jax.Array) -> Point:
        total = self.schedule.train_steps
        # u may be rounded up to 1.0 in float32.
        index = jnp.minimum((u * total).astype(jnp.int32), total - 1)
        alpha, sigma = (jnp.asarray(a)[index] for a in schedules.signal_and_noise(self.schedule))
        return Point(index.astype(jnp.float32), alpha, sigma)

    def grid(self, steps: int) -> Grid:
        return schedules.euler_grid(self.schedule, steps)


@dataclass(frozen=True)
class EDM:
    """Karras and others' process (arXiv 2206.00364): y = x0 + k * eps, k from sigma_min to _max.

    The network sees x = y / sqrt(k^2 + sigma_data^2) and is told t = log(k) / 4 (their c_in and
    c_noise); what it outputs is "v" or "eps" in diffusers' words, which differ in sign alone:
    x0 = c_skip y -+ c_out output. CosXL is EDM(sigma_max=120, sigma_data=1, levels="exponential").

    `levels`: "karras" (with `rho`) or "exponential" steps between the two ends, as in diffusers'
    EDMEuler and EDMDPMSolverMultistep, also for the positions u of training.

    Raises:
        InputError: an unknown word, or levels that do not rise.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0
    levels: str = "karras"
    output: str = "eps"

    def __post_init__(self) -> None:
        lookup.known(self.levels, ("karras", "exponential"), "levels of EDM")
        lookup.known(self.output, ("eps", "v"), "output of EDM")
        if not 0 < self.sigma_min < self.sigma_max or self.sigma_data <= 0:
            raise InputError("EDM: it must be that 0 < sigma_min < sigma_max and 0 < sigma_data")

    @property
    def prediction(self) -> Kind:
        # That of x0 / sigma_data, whose process is variance preserving.
        data, sign = self.sigma_data, 1.0 if self.output == "v" else -1.0
        return Prediction(
            lambda x0, eps, alpha, sigma: sign * (alpha * data * eps - sigma / data * x0),
            lambda output, x, alpha, sigma: data * (alpha * data * x - sign * sigma * output),
        )

    def _k(self, u: Any, xp: Any) -> Any:
        if self.levels == "exponential":
            low, high = math.log(self.sigma_min), math.log(self.sigma_max)
            return xp.exp(high + (1.0 - u) * (low - high))
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (high + (1.0 - u) * (low - high)) ** self.rho

    def at(self, u: jax.Array) -> Point:
        k = self._k(u, jnp)
        alpha = jax.lax.rsqrt(k**2 + self.sigma_data**2)
        return Point(0.25 * jnp.log(k), alpha, k * alpha)

    def grid(self, steps: int) -> Grid:
        """As diffusers': it ends without noise, and begins at their init_noise_sigma."""
        k = self._k(_falling(steps), np)
        scale = (k**2 + self.sigma_data**2) ** 0.5
        return chained(0.25 * np.log(k), 1 / scale, k / scale, (k[0] ** 2 + 1) ** 0.5 / scale[0])


@dataclass(frozen=True)
class Flow:
    """Rectified flow (arXiv 2209.03003): x = (1 - sigma) x0 + sigma eps; t = sigma * train_steps.

    `shift` s moves positions towards noise, u -> s u / (1 + (s - 1) u) = sigma (arXiv 2403.03206,
    eq. 23): 3 for SD3. `mu` in its place is the exponent of a dynamic shift, s = e^mu; for a
    picture of so many tokens FLUX's and SD3.5's is `dynamic_mu`.

    `spacing`, as in diffusers' FlowMatchEuler: "linspace" from 1 to the smallest level, which is
    1 / train_steps (shifted before all levels are, where the shift is static: SD3), or "trailing"
    from 1 to 1 / steps (FLUX).

    Raises:
        InputError: an unknown word, or a shift that is not positive.
    """

    shift: float = 1.0
    mu: float | None = None
    spacing: str = "linspace"
    train_steps: int = 1000
    prediction: str = "velocity"

    def __post_init__(self) -> None:
        lookup.known(self.spacing, ("linspace", "trailing"), "spacing of Flow")
        if self.prediction == "v":
            raise InputError("Flow: 'v' is for variance-preserving processes; take 'velocity'")
        if self.shift <= 0 or (self.mu is not None and self.shift != 1.0):
            raise InputError("Flow: give a positive shift, or mu alone, from which it follows")

    def _shifted(self, u: Any) -> Any:
        s = self.shift if self.mu is None else math.exp(self.mu)
        return s * u / (1.0 + (s - 1.0) * u)

    def at(self, u: jax.Array) -> Point:
        sigma = self._shifted(u)
        return Point(sigma * self.train_steps, 1.0 - sigma, sigma)

    def grid(self, steps: int) -> Grid:
        """As diffusers': it starts from pure noise and ends without any."""
        end = 1 / self.train_steps
        if self.spacing == "trailing":
            end = 1 / steps if steps else end
        elif self.mu is None:
            end = self._shifted(end)
        sigma = self._shifted(end + (1.0 - end) * _falling(steps))
        return chained(sigma * self.train_steps, 1.0 - sigma, sigma)


def dynamic_mu(
    tokens: int,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    base_tokens: int = 256,
    max_tokens: int = 4096,
) -> float:
    """The `mu` of a plane of so many tokens: a line through two points (diffusers' FLUX, SD3.5)."""
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return base_shift + slope * (tokens - base_tokens)


def _falling(steps: int) -> np.ndarray:
    """Positions `[steps]` float64, evenly from 1 to 0; 1 alone where there is one step."""
    if steps < 1:
        raise InputError(f"cannot sample in {steps} steps; take 1 or more")
    return np.linspace(1.0, 0.0, steps)


PROCESSES: dict[str, Any] = {
    "sd": ScheduleConfig(),
    "ztsnr": ScheduleConfig(zero_terminal_snr=True, prediction="v", spacing="trailing"),
    "edm": EDM(),
    "cosxl": EDM(sigma_max=120.0, sigma_data=1.0, levels="exponential", output="v"),
    "flow": Flow(),
    "sd3": Flow(shift=3.0),
    "flux_schnell": Flow(spacing="trailing"),
}
