"""Samplers: from noise to a sample, as short functions over `denoise(x, point) -> x0`.

**What is carried.** Every sampler carries the sample x = alpha * x0 + sigma * eps as the process
scales it (`process`), which the network sees as it is: its variance is that of the data or about 1
at every step, and it stays finite where the signal ends (zero terminal SNR, rectified flow), where
sigma-space blows up. So `denoise` takes the pair (alpha, sigma) in a `Point`, not one sigma. What
is written in sigma-space ("k" samples y = x / alpha = x0 + k * eps with k = sigma / alpha, as
k-diffusion and diffusers' Euler) is done on x inside a step. Their scaling of the network's input,
y / sqrt(k^2 + 1), is alpha * y = x: the network is given the same numbers.

**The loop** is one `lax.scan` over `k` steps from a traced index. A chain may be run at once or in
chunks, with the same result, and one compiled chunk serves every start (a strength):

    sampler = samplers.get("ddim")()
    grid = sampler.grid(schedule, 25)
    state = samplers.start(sampler, grid, x, keys)
    for _ in range(0, 25, 5):
        state = chunk(params, state)  # jitted: sample(denoise, sampler, grid, state, 5)

**A new sampler** is a function that returns a `Sampler` (see `solvers` and `multistep`), anywhere:
it is named `module:function`, or by a line in `SAMPLERS`. What it remembers between steps is its
`memory`, noise is drawn by `noise()`, and its grid says which points it visits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mv2_jax import lookup
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import prediction
from mv2_jax.diffusion.names import SAMPLERS
from mv2_jax.diffusion.points import Denoise, Grid, Point, Sampler
from mv2_jax.diffusion.solvers import ddim, euler, tcd
from mv2_jax.errors import InputError

__all__ = [
    "SAMPLERS",
    "Denoise",
    "Point",
    "Sampler",
    "State",
    "ddim",
    "denoiser",
    "euler",
    "get",
    "point_at",
    "renoise",
    "sample",
    "start",
    "start_index",
    "tcd",
]


class State(NamedTuple):
    """Where a chain stands: samples x `[B, ...]` float32, the next step's index `[]` int32,
    the sampler's memory, and the samples' keys `[B]` (None for a sampler without noise).

    `kept` is what the network keeps from step to step, for a `denoise` that takes it; else None."""

    x: jax.Array
    index: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    memory: Any
    keys: jax.Array | None
    kept: Any = None


def get(name: str) -> Callable[..., Sampler]:
    """The function that makes the sampler of this name: `get("ddim")(eta=0.5)`.

    Raises:
        InputError: no such sampler; the message names the nearest.
    """
    return lookup.find(
        name, SAMPLERS, "sampler", fits=callable, wants="a function that makes a Sampler"
    )


def make(name: str) -> Sampler:
    """The sampler of this name as it is without settings.

    Raises:
        InputError: there is none, or what was found makes no Sampler.
    """
    found = get(name)()
    if not isinstance(found, Sampler):
        what = type(found).__name__
        raise InputError(
            f"sampler {name!r}: what it makes is of type {what}, not a diffusion.samplers.Sampler"
        )
    return found


def denoiser(predict: Callable[..., Any], kind: prediction.Kind) -> Callable[..., Any]:
    """`denoise(x, point) -> x0` from `predict(x, point) -> output` of the prediction type `kind`;
    or both with something kept as a third argument, and as a second result.

    With guidance `predict` runs several rows (`guidance.Rule.repeat`, `combine`); `kind` is the
    process's `prediction`.
    """
    kind = prediction.get(kind)

    def denoise(x: jax.Array, point: Point, *kept: Any) -> Any:
        made = predict(x, point, *kept)
        output, *more = made if kept else (made,)
        x0 = prediction.to_x0(kind, output.astype(jnp.float32), x, point.alpha, point.sigma)
        return (x0, *more) if kept else x0

    return denoise


def start_index(steps: int, strength: float | jax.Array) -> jax.Array:
    """The step `[]` int32 at which a chain of this strength begins (traced).

    Strength 1 runs all `steps`, from samples noised to the first one's level, 0 none of them;
    between, the last floor(steps * strength), as diffusers' image-to-image.
    """
    # A little is added, so that 0.29 of 100 steps is 29 in any precision.
    run = jnp.floor(jnp.asarray(strength, jnp.float32) * steps + 1e-3).astype(jnp.int32)
    return steps - jnp.clip(run, 0, steps)


def point_at(grid: Grid, index: int | jax.Array) -> Point:
    """Where the step of this index starts (traced); past the last step, the clean end."""
    ended = jnp.asarray(index) >= grid.steps
    t, alpha, sigma = (jnp.asarray(column)[index] for column in (grid.t, grid.alpha, grid.sigma))
    return Point(
        jnp.where(ended, 0.0, t), jnp.where(ended, 1.0, alpha), jnp.where(ended, 0.0, sigma)
    )


def renoise(grid: Grid, index: int | jax.Array, x0: jax.Array, eps: jax.Array) -> jax.Array:
    """Clean samples brought to the noise at which step `index` starts: x for a partial chain."""
    point = point_at(grid, index)
    return prediction.noised(x0, eps, point.alpha, point.sigma)


def start(
    sampler: Sampler,
    grid: Grid,
    x: jax.Array,
    keys: jax.Array | None = None,
    index: int | jax.Array = 0,
) -> State:
    """The state of a chain before its first step.

    Args:
        x: samples `[B, ...]` with the noise of step `index`: from `noise_prior.initial` (whole
            chain) or `renoise` (partial one).
        keys: typed keys `[B]`; only samplers with noise need them.
        index: the first step to run, traced: see `start_index`.
    """
    x = x.astype(jnp.float32)
    index = jnp.clip(jnp.asarray(index, jnp.int32), 0, grid.steps)
    return State(x, index, sampler.init(x), keys)


def sample(
    denoise: Callable[..., Any], sampler: Sampler, grid: Grid, state: State, k: int | None = None
) -> State:
    """Runs the next `k` steps of a chain (all of the grid's where None).

    `k` is static, where the chain stands is traced. What is asked for past the chain's end costs
    nothing: the network is not evaluated. Not to be vmapped over states, for then it is.
    Where the state has something `kept`, it is `denoise(x, point, kept) -> (x0, kept)`.

    Raises:
        ValueError: the sampler draws noise and the state has no keys.
    """
    columns = jax.tree.map(jnp.asarray, grid)

    def advance(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        x, index, memory, kept = carry
        here = (columns.t[index], columns.alpha[index], columns.sigma[index])
        now = Point(*here, index=index)
        # No network is asked at `then`, so that its t is only that of the next visited point.
        t_next = columns.t[jnp.minimum(index + 1, grid.steps - 1)]
        own = None if columns.kept is None else columns.kept[index]
        then = Point(t_next, columns.alpha_next[index], columns.sigma_next[index], own)

        def noise() -> jax.Array:
            if state.keys is None:
                raise ValueError(
                    "this sampler draws noise: start its chain with keys, one a sample"
                )
            step_keys = named.fold(named.fold(state.keys, "sampler"), index)
            return named.normal(step_keys, x.shape[1:])

        x0, kept = (denoise(x, now), None) if kept is None else denoise(x, now, kept)
        x, memory = sampler.step(x, x0, now, then, memory, noise)
        return x, index + 1, memory, kept

    def body(carry, _):
        return lax.cond(carry[1] < grid.steps, advance, lambda same: same, carry), None

    carry = (state.x, state.index, state.memory, state.kept)
    (x, index, memory, kept), _ = lax.scan(body, carry, length=grid.steps if k is None else k)
    return State(x, index, memory, state.keys, kept)
