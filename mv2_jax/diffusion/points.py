"""What a sampler is: three functions, and the points of the noise schedule that they see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mv2_jax.config import ScheduleConfig
from mv2_jax.diffusion.schedules import Grid


class Point(NamedTuple):
    """A level of noise: the timestep that the network is told, and x = alpha * x0 + sigma * eps.

    Scalars, traced. Of a step's end, `kept` is how much of sigma is the sample's own noise, where
    the grid says so (`Grid.kept`).
    """

    t: jax.Array
    alpha: jax.Array
    sigma: jax.Array
    kept: jax.Array | None = None

    @property
    def k(self) -> jax.Array:
        """sigma / alpha, the noise of the sigma-space form; infinite at zero signal."""
        return self.sigma / self.alpha


Denoise = Callable[[jax.Array, Point], jax.Array]


class Sampler(NamedTuple):
    """A sampler's three functions.

    grid: `(ScheduleConfig, steps) -> Grid`, the points that it visits.
    init: `x -> memory`, what its first step remembers (a tree; `()` if it needs nothing).
    step: `(x, x0, now, then, memory, noise) -> (x, memory)`: from the sample `x` `[B, ...]` at
        the point `now`, its denoised `x0`, to the point `then`; `noise()` draws standard normal
        noise like x, new at every step, the same however the chain is cut into chunks.
    """

    grid: Callable[[ScheduleConfig, int], Grid]
    init: Callable[[jax.Array], Any]
    step: Callable[..., tuple[jax.Array, Any]]


def nothing(x: jax.Array) -> tuple[()]:
    """The memory of a sampler that looks at one point only."""
    return ()
