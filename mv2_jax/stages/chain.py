"""One driver of a chain, for every stage and everything that runs one.

A chain goes from a state (`t2i.start`, `i2v.start`, `v2v.start`) to its end in guided steps, and
where FreeInit is asked for it begins again from the slow part of its end. The cascade drives it in
parts through its compiled programs and tells its progress; `jit`, `grad` and `vmap` take it whole;
`mv2 explain` looks in on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.config import StageConfig
from mv2_jax.diffusion import free_init as slow_part
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import process, samplers
from mv2_jax.diffusion.guidance import Guidance, Rule
from mv2_jax.diffusion.samplers import State
from mv2_jax.diffusion.schedules import Grid
from mv2_jax.programs import Progress, silent
from mv2_jax.stages import caching, stage
from mv2_jax.stages.conditions import Params
from mv2_jax.stages.stage import Conditioning, Config

STEPS_AT_ONCE = 5  # a progress bar breathes this often; the result is that of one whole scan


def program(cfg: StageConfig, steps: int) -> tuple[samplers.Sampler, Grid]:
    """The sampler of a stage and the points that it visits in `steps` steps."""
    sampler = samplers.make(cfg.sampler)
    return sampler, sampler.grid(cfg.schedule, steps)


def noise(keys: jax.Array, cfg: Config, shape: tuple[int, ...] | None = None) -> jax.Array:
    """The standard normal noise that the stage's clips begin with, one a key."""
    return named.normal(named.fold(keys, f"{cfg.name} noise"), shape or cfg.latent_shape)


def begin(
    cfg: Config, grid: Grid, x: jax.Array, keys: jax.Array, index: int | jax.Array = 0
) -> State:
    """The state of a chain before its step `index`, at x [B, T, h, w, C]."""
    sampler = samplers.make(cfg.stage.sampler)
    return samplers.start(sampler, grid, x, named.fold(keys, f"{cfg.name} sampler"), index)


@partial(jax.jit, static_argnames=("cfg", "steps"))
def again(
    keys: jax.Array, latents: jax.Array, turn: jax.Array, *, cfg: Config, steps: int
) -> State:
    """A new first state from where a chain ended, by FreeInit (`diffusion.free_init`).

    Args:
        keys: [B], those that the first chain began with.
        latents: [B, T, h, w, C], the end of the chain before.
        turn: int32 [], which restart this is, from 0: each has its own noise.
    """
    _, grid = program(cfg.stage, steps)
    fresh = named.fold(named.fold(keys, f"{cfg.name} free init"), turn)
    gain = slow_part.low_pass(cfg.latent_shape[:-1])
    new = named.normal(fresh, cfg.latent_shape)
    x = slow_part.restart(grid, latents, noise(keys, cfg), new, gain)
    return begin(cfg, grid, x, fresh)


@partial(jax.jit, static_argnames=("cfg", "rule", "steps", "k", "branch", "bounded"))
def advance(
    params: Params,
    conditioning: Conditioning,
    guidance: Guidance,
    state: State,
    interval: jax.Array | None = None,
    *,
    cfg: Config,
    rule: Rule,
    steps: int,
    k: int | None = None,
    branch: int | None = None,
    bounded: bool = False,
) -> State:
    """The next `k` of `steps` steps (all where None); the last state's x is the latent.

    Clips that are longer than the backbone knows are denoised in windows that overlap.

    Args:
        conditioning: `stage.condition`'s, of the same rule.
        interval, branch, bounded: steps that do less (`caching.predictor`); a state with a branch
            is of `caching.begin`.

    Raises:
        ValueError: a condition that cannot be told to so long a clip.
    """
    sampler, grid = program(cfg.stage, steps)
    less = {"branch": branch, "bounded": bounded}
    given = (params, conditioning, guidance, interval)
    predict = caching.predictor(*given, cfg=cfg, rule=rule, steps=steps, **less)
    denoise = samplers.denoiser(predict, process.of(cfg.stage.schedule).prediction)
    return samplers.sample(denoise, sampler, grid, state, k)


def plainly(function: Callable[..., Any], *args: Any, **static: Any) -> Any:
    """Calls a jitted function; `programs.Programs` does so aloud."""
    return function(*args, **static)


@dataclass(frozen=True)
class Chain:
    """A chain before its first step, and how it is driven.

    conditioning: what its rows are told (`stage.condition`), of the same `rule`.
    keys: [B], those that `state` began with. steps: of a whole chain.
    free_init: how often it begins again from the slow part of its end.
    interval, branch: a whole step comes every so many, and where the others are cut; a branch of
        None makes all of them whole. bounded: outside of the guidance's interval the last row alone
        is run. See `caching`.
    run: calls the jitted functions; progress: is told of every part.
    """

    cfg: Config
    params: Params
    conditioning: Conditioning
    guidance: Guidance
    rule: Rule
    state: State
    keys: jax.Array
    steps: int
    free_init: int = 0
    interval: int = 1
    branch: int | None = None
    bounded: bool = False
    run: Callable[..., Any] = plainly
    progress: Progress = silent

    def end(
        self, look: Callable[[State], bool] | None = None, at_once: int | None = STEPS_AT_ONCE
    ) -> State:
        """Its last state.

        Args:
            look: called with the state before each part of the last turn, where there are parts;
                where it returns True the chain ends there.
            at_once: steps of one part; None runs a turn as one, and reads nothing from the device,
                so that it may be traced.
        """
        state, of = self.state, {"cfg": self.cfg, "steps": self.steps}
        static = {**of, "rule": self.rule, "branch": self.branch, "bounded": self.bounded}
        rows = self.params, self.conditioning, self.guidance
        every: tuple[Any, ...] = ()
        if self.branch is not None:
            every = (np.int32(self.interval),)
        for turn in range(self.free_init + 1):
            if turn:
                state = self.run(again, self.keys, state.x, np.int32(turn - 1), **of)
            if every:
                cut = {"rule": self.rule, "branch": self.branch}
                state = self.run(caching.begin, state, cfg=self.cfg, **cut)
            if at_once is None:
                state = self.run(advance, *rows, state, *every, **static)
                continue
            first = int(state.index)
            k = min(at_once, self.steps)
            self.progress(self.cfg.name, 0, self.steps - first)
            for _ in range(first, self.steps, k):
                if look is not None and turn == self.free_init and look(state):
                    return state
                made = self.run(advance, *rows, state, *every, **static, k=k)
                state = jax.block_until_ready(made)
                done = min(int(state.index), self.steps) - first
                self.progress(self.cfg.name, done, self.steps - first)
        return state


def sample(
    params: Params,
    cfg: Config,
    inputs: dict[str, Any],
    keys: jax.Array,
    guidance: Guidance,
    start: Callable[..., State],
    *given: Any,
    rule: Rule | None = None,
    steps: int | None = None,
    free_init: int = 0,
) -> jax.Array:
    """Raw inputs (`conditions.Inputs`) -> latents [B, T, h, w, C], in one jitted scan a chain.

    `start(keys, *given, cfg=, steps=)` makes the first state: `t2i.start` and its like.
    """
    rule, steps = rule or cfg.rule, steps or cfg.stage.steps
    conditioning = stage.condition(params, inputs, cfg=cfg, rule=rule)
    state = start(keys, *given, cfg=cfg, steps=steps)
    whole = Chain(cfg, params, conditioning, guidance, rule, state, keys, steps, free_init)
    return whole.end(at_once=None).x


def look_at(cfg: Config, steps: int, state: State) -> samplers.Point:
    """Where in the noise a chain stands."""
    return samplers.point_at(program(cfg.stage, steps)[1], jnp.asarray(state.index))
