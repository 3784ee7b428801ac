"""Samplers that look at one point only: DDIM, Euler and its ancestral form, LCM, TCD and the like.

Each is a short function that returns a `Sampler`; `names.SAMPLERS` names them.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from mv2_jax.diffusion import prediction, process, schedules
from mv2_jax.diffusion.points import Sampler, nothing

# LCM's boundary condition (arXiv 2310.04378, section 4.1): the spread that the data is taken to
# have, and what timesteps are multiplied with, in the authors' own code.
LCM_SIGMA_DATA, LCM_TIME_SCALE = 0.5, 10.0
_DISTILLED = ("the sampler of a network distilled by LCM or TCD", "sampler 'consistency'")


def ddim(eta: float | jax.Array = 0.0) -> Sampler:
    """DDIM (arXiv 2010.02502, eq. 12 and 16), as diffusers' scheduler.

    `eta` scales the noise of each step: 0 is the deterministic sampler, 1 is DDPM. A traced eta
    changes without recompiling; Python's 0 leaves the noise out of the program.
    """
    deterministic = isinstance(eta, int | float) and eta == 0

    def step(x, x0, now, then, memory, noise):
        eps = prediction.eps_of(x, x0, now.alpha, now.sigma)
        if deterministic:
            return prediction.noised(x0, eps, then.alpha, then.sigma), memory
        # The paper's sigma_t = eta sigma'/sigma sqrt(1 - alpha^2/alpha'^2) and what is left of
        # sigma'^2, both in the ratio k'/k: so written they cancel at neither end of the schedule.
        ratio = prediction.divide(now.alpha * then.sigma, now.sigma * then.alpha)
        fresh = eta * then.sigma * jnp.sqrt(jnp.maximum((1.0 - ratio) * (1.0 + ratio), 0.0))
        left = jnp.maximum((1.0 - eta) * (1.0 + eta) + (eta * ratio) ** 2, 0.0)
        kept = prediction.noised(x0, eps, then.alpha, then.sigma * jnp.sqrt(left))
        return kept + fresh * noise(), memory

    return Sampler(process.grids(schedules.ddim_grid), nothing, step)


def euler() -> Sampler:
    """Euler's method on dy/dk = (y - x0) / k in sigma-space (arXiv 2206.00364, algorithm 2
    without churn), as diffusers' Euler, EDMEuler and FlowMatchEuler schedulers.

    Along the same line, d x / d sigma is constant where alpha = 1 - sigma: it is Euler's method on
    the velocity of a rectified flow too.
    """

    def step(x, x0, now, then, memory, noise):
        # y + (k' - k) (y - x0) / k in another order: k may be 4096 and k' 12, and their difference
        # would drown the sample.
        return then.alpha * x0 + (then.sigma / now.sigma) * (x - now.alpha * x0), memory

    return Sampler(process.grids(schedules.euler_grid), nothing, step)


def euler_a() -> Sampler:
    """Ancestral Euler (k-diffusion), as diffusers' EulerAncestralDiscreteScheduler.

    A step goes down to k'^2 / k, below where it is to land, and adds the noise that is missing:
    what is left of the sample's own noise and what is new are those of the posterior given x0.
    """

    def step(x, x0, now, then, memory, noise):
        ratio = then.k / now.k
        fresh = then.sigma * jnp.sqrt((1.0 - ratio) * (1.0 + ratio))
        own = ratio * (then.sigma / now.sigma) * (x - now.alpha * x0)
        return then.alpha * x0 + own + fresh * noise(), memory

    return Sampler(process.grids(schedules.euler_grid), nothing, step)


def consistency() -> Sampler:
    """Multistep sampling of a consistency model (arXiv 2303.01469, algorithm 1), over any process.

    The network's jump to x0 is noised anew to the next point, as by diffusers' FlowMatchLCM.
    `lcm` is the form for networks distilled over a discrete schedule, with its boundary condition.
    """

    def step(x, x0, now, then, memory, noise):
        return prediction.noised(x0, noise(), then.alpha, then.sigma), memory

    return Sampler(process.grid, nothing, step)


def boundary(t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How much of the sample and of its x0 a latent consistency model's jump from timestep t is:
    at 0 it is the sample itself (arXiv 2310.04378, section 4.1)."""
    spread = t * LCM_TIME_SCALE
    total = spread**2 + LCM_SIGMA_DATA**2
    return LCM_SIGMA_DATA**2 / total, spread * jax.lax.rsqrt(total)


def lcm(original_steps: int = 50) -> Sampler:
    """Multistep sampling of a latent consistency model (arXiv 2310.04378, algorithm 3).

    The network's jump to x0 is noised anew to the next point. `original_steps`: how many steps the
    distilled solver had, of which the visited ones are chosen (diffusers' words); static.
    """

    def step(x, x0, now, then, memory, noise):
        skip, out = boundary(now.t)
        clean = out * x0 + skip * x
        return prediction.noised(clean, noise(), then.alpha, then.sigma), memory

    grid = partial(schedules.consistency_grid, original_steps=original_steps)
    return Sampler(process.grids(grid, *_DISTILLED), nothing, step)


def tcd(eta: float = 0.3, original_steps: int = 50) -> Sampler:
    """Strategic stochastic sampling of a trajectory consistency model (arXiv 2402.19159, alg. 4).

    The network's jump goes past the next point, to (1 - eta) of its timestep, and noise brings it
    back. `eta` (the paper's gamma, static) is 0 for no noise and 1 for jumps to timestep 0;
    `original_steps` as in `lcm`.
    """

    def step(x, x0, now, then, memory, noise):
        eps = prediction.eps_of(x, x0, now.alpha, now.sigma)
        moved = prediction.noised(x0, eps, then.alpha, then.kept)
        if eta == 0:
            return moved, memory
        left = jnp.maximum((then.sigma - then.kept) * (then.sigma + then.kept), 0.0)
        return moved + jnp.sqrt(left) * noise(), memory

    grid = partial(schedules.trajectory_grid, eta=eta, original_steps=original_steps)
    return Sampler(process.grids(grid, *_DISTILLED), nothing, step)
