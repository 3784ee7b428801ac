"""Samplers that remember what the network said before: DPM-Solver++ 2M and UniPC.

Both follow the exact solution of the flow in lambda = log(alpha / sigma), with x0 taken to change
along a line (or, where nothing is remembered, not at all). Written in r = k' / k = exp(-h), where h
is the step in lambda, so that nothing is infinite at either end of a process.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mv2_jax.diffusion import process, schedules
from mv2_jax.diffusion.points import Grid, Point, Sampler
from mv2_jax.diffusion.prediction import divide


class Before(NamedTuple):
    """The last step's x0 `[B, ...]` and k `[]`; `known` `[]` is False where there was no step."""

    x0: jax.Array
    k: jax.Array
    known: jax.Array


def _no_step(x: jax.Array) -> Before:
    return Before(jnp.zeros_like(x), jnp.float32(1.0), jnp.bool_(False))


def _slope(x0: jax.Array, k: jax.Array, ratio: jax.Array, before: Before) -> jax.Array:
    """How much x0 would change over the next step, going on as it went over the last one."""
    share = divide(-jnp.log(ratio), jnp.log(before.k / k))
    return share * (x0 - before.x0)


def _extrapolated(
    x0: jax.Array, now: Point, then: Point, ratio: jax.Array, before: Before
) -> jax.Array:
    """x0 half a step on; as it is on a chain's first step, and on its last, to no noise at all."""
    second = before.known & (then.sigma > 0)
    # The last step's ratio is 0, and an infinite slope would make gradients nan, though unused.
    ratio = jnp.where(second, ratio, 1.0)
    return jnp.where(second, x0 + 0.5 * _slope(x0, now.k, ratio, before), x0)


def dpmpp_2m(karras: bool = False, sde: bool = False) -> Sampler:
    """DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2), as diffusers' with the midpoint rule.

    Args:
        karras: the noise levels of arXiv 2206.00364, eq. 5 (rho 7), instead of the spacing's.
        sde: the stochastic form (their section 5, SDE-DPM-Solver++): noise at every step.
    """

    def step(x, x0, now, then, memory, noise):
        ratio = then.k / now.k
        goal = _extrapolated(x0, now, then, ratio, memory)
        kept = then.sigma / now.sigma
        left = (1.0 - ratio) * (1.0 + ratio) if sde else 1.0 - ratio
        moved = (kept * ratio if sde else kept) * x + then.alpha * left * goal
        if sde:
            moved = moved + then.sigma * jnp.sqrt(left) * noise()
        return moved, Before(x0, now.k, jnp.bool_(True))

    return Sampler(partial(_grid, karras=karras), _no_step, step)


dpmpp_2m_karras = partial(dpmpp_2m, karras=True)
dpmpp_2m_sde = partial(dpmpp_2m, sde=True)
dpmpp_2m_sde_karras = partial(dpmpp_2m, karras=True, sde=True)


class Corrected(NamedTuple):
    """What UniPC remembers: the sample `[B, ...]` that it stepped from and the point there, its x0
    with that of the step before, and whether that step was of second order."""

    x: jax.Array
    alpha: jax.Array
    sigma: jax.Array
    last: Before
    before: Before
    second: jax.Array


def unipc(karras: bool = False) -> Sampler:
    """UniPC-2 in its B2 form (arXiv 2302.04867), as diffusers' UniPCMultistepScheduler.

    A step first corrects the sample with what the network said there, at no further evaluation,
    and then goes on as DPM-Solver++ 2M. `karras` as in `dpmpp_2m`.
    """

    def init(x: jax.Array) -> Corrected:
        one = jnp.float32(1.0)
        return Corrected(x, one, one, _no_step(x), _no_step(x), jnp.bool_(False))

    def step(x, x0, now, then, memory, noise):
        x = jnp.where(memory.last.known, _corrected(x0, now, memory), x)
        ratio = then.k / now.k
        goal = _extrapolated(x0, now, then, ratio, memory.last)
        moved = (then.sigma / now.sigma) * x + then.alpha * (1.0 - ratio) * goal
        here = Before(x0, now.k, jnp.bool_(True))
        return moved, Corrected(x, now.alpha, now.sigma, here, memory.last, memory.last.known)

    return Sampler(partial(_grid, karras=karras), init, step)


unipc_karras = partial(unipc, karras=True)


def _grid(schedule: Any, steps: int, karras: bool) -> Grid:
    """`schedules.multistep_grid` of a discrete schedule, or another process's own points."""
    if karras and isinstance(schedule, process.EDM):
        return dataclasses.replace(schedule, levels="karras").grid(steps)
    own = partial(schedules.multistep_grid, karras=karras)
    refused = ("a sampler with Karras' noise levels", "the one without") if karras else ()
    return process.grids(own, *refused)(schedule, steps)


def _corrected(x0: jax.Array, now: Point, memory: Corrected) -> jax.Array:
    """The last step made again, now that x0 at its end is known (their eq. 9 and theorem 3.1)."""
    last, before = memory.last, memory.before
    # Where no step was made this is thrown away, and may still spoil gradients by what is infinite.
    ratio = jnp.where(last.known, now.k / last.k, 0.5)
    h = -jnp.log(ratio)
    plain = (now.sigma / memory.sigma) * memory.x + now.alpha * (1.0 - ratio) * last.x0
    # The moments b1, b2 of the exponential integral, and the weights that match both of them.
    b1 = divide(1.0, 1.0 - ratio) - divide(1.0, h)
    b2 = divide(1.0, 1.0 - ratio) - divide(2.0 * b1, h)
    # Where x0 was known before, in steps: -1 or so.
    node = jnp.where(memory.second, divide(-jnp.log(before.k / last.k), h), -1.0)
    weight = divide(b1 - b2, 1.0 - node)
    straight = 0.5 * (x0 - last.x0)
    bent = weight * divide(before.x0 - last.x0, node) + (b1 - weight) * (x0 - last.x0)
    change = jnp.where(memory.second, bent, straight)
    return plain + now.alpha * (1.0 - ratio) * change
