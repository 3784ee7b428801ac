"""What a sampler is: three functions, and the levels of noise that they see.

Everywhere x = alpha * x0 + sigma * eps, scaled as the network is to see it. What alpha and sigma
are at which time is the process's to say (`process`); samplers use nothing but their ratios and
the two numbers themselves, so that they work over any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Point(NamedTuple):
    """A level of noise: the timestep that the network is told, and x = alpha * x0 + sigma * eps.

    Traced; numbers `[]` in sampling, `[B]` in training. Of a step's end, `kept` is how much of
    sigma is the sample's own noise, where the grid says so (`Grid.kept`). Of a step's start,
    `index` is the step's number in its grid.
    """

    t: jax.Array
    alpha: jax.Array
    sigma: jax.Array
    kept: jax.Array | None = None
    index: jax.Array | None = None  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def k(self) -> jax.Array:
        """sigma / alpha, the noise of the sigma-space form; infinite at zero signal."""
        return self.sigma / self.alpha


class Grid(NamedTuple):
    """The numbers of every sampling step, `[steps]` float32 each, first step (most noise) first.

    A step goes from (alpha, sigma) to (alpha_next, sigma_next), where x = alpha * x0 + sigma * eps;
    `t` is what the network is told. Where a step ends is stored beside where it starts because
    the two need not chain: see `schedules.ddim_grid`. The last step ends in x0 itself, or near.
    `init_scale` is the scale `[]` of the standard normal noise that plain sampling starts from.
    `kept`, for samplers that jump past a step's end and add noise to come back, is how much of
    sigma_next is the sample's own noise; None for the others.
    """

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    alpha_next: np.ndarray
    sigma_next: np.ndarray
    init_scale: np.ndarray | np.floating
    kept: np.ndarray | None = None

    @property
    def steps(self) -> int:
        return self.t.shape[0]


def chained(t: np.ndarray, alpha: np.ndarray, sigma: np.ndarray, init_scale: float = 1.0) -> Grid:
    """A Grid over points `[steps]` each (float64), where each step ends at the next one's start.

    The last step ends in x0 itself.
    """
    ends = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    columns = (np.asarray(c, np.float32) for c in (t, alpha, sigma, *ends))
    return Grid(*columns, init_scale=np.float32(init_scale))


Denoise = Callable[[jax.Array, Point], jax.Array]


class Sampler(NamedTuple):
    """A sampler's three functions.

    grid: `(schedule, steps) -> Grid`, the points that it visits in that many steps of a process
        (or of a ScheduleConfig, which stands for one). `process.grid` leaves them to the process.
    init: `x -> memory`, what its first step remembers (a tree; `()` if it needs nothing).
    step: `(x, x0, now, then, memory, noise) -> (x, memory)`: from the sample `x` `[B, ...]` at
        the point `now`, its denoised `x0`, to the point `then`; `noise()` draws standard normal
        noise like x, new at every step, the same however the chain is cut into chunks.
    """

    grid: Callable[[Any, int], Grid]
    init: Callable[[jax.Array], Any]
    step: Callable[..., tuple[jax.Array, Any]]


def nothing(x: jax.Array) -> tuple[()]:
    """The memory of a sampler that looks at one point only."""
    return ()
