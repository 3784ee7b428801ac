"""The training state and the one step that advances it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mv2_jax.diffusion import keys
from mv2_jax.sharding import SAMPLES, constrain
from mv2_jax.train.task import Batch, Metrics, Params, Task


class State(NamedTuple):
    """All that a phase carries from step to step: what a checkpoint holds.

    `step` is the number of updates made, int32; `ema` follows `params`, fp32 like them, and so does
    each of `others`, averages of other lengths (`ema.also`).
    """

    step: jax.Array
    params: Params
    ema: Params
    opt: Any
    others: tuple[Params, ...] = ()


def create(params: Params, tx: optax.GradientTransformation, others: int = 0) -> State:
    """A fresh state around `params`, which are copied: steps give their buffers away."""
    params = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
    ema, *more = (jax.tree.map(jnp.copy, params) for _ in range(1 + others))
    return State(jnp.zeros((), jnp.int32), params, ema, tx.init(params), tuple(more))


def ema_decay(step: jax.Array, decay: float, warmup: bool) -> jax.Array:
    """The share of the old average kept at a step (0: the first update).

    With `warmup` it is min(decay, (1 + step) / (10 + step)), TensorFlow's rule, so that the
    average forgets the initial weights soon in a short phase.
    """
    step = step.astype(jnp.float32)
    ramp = (1.0 + step) / (10.0 + step)
    return jnp.minimum(decay, ramp) if warmup else jnp.full((), decay, jnp.float32)


def decays(cfg: Any) -> tuple[float, ...]:
    """Those of a phase's averages: of `State.ema`, then of `State.others`."""
    return (cfg.ema.decay, *cfg.ema.also)


def averaged(old: Params, params: Params, keep: jax.Array) -> Params:
    """An average, moved towards `params`; `keep` is the share of the old one."""
    return jax.tree.map(lambda e, p: e + (1.0 - keep) * (p - e), old, params)


def _gradients(task: Task, parts: int) -> Callable[..., tuple[Params, Metrics]]:
    """(params, frozen, batch, key) -> (gradients, metrics), averaged over `parts` equal parts.

    Part i holds rows i, i + parts, i + 2 * parts ... of the batch.
    """

    def whole(params: Params, frozen: Params, batch: Batch, key: jax.Array):
        (loss, metrics), grads = jax.value_and_grad(task.loss, has_aux=True)(
            params, frozen, batch, key
        )
        return grads, {"loss": loss, **metrics}

    if parts == 1:
        return whole

    def split(x: jax.Array) -> jax.Array:
        if x.shape[0] % parts:
            raise ValueError(f"a batch of {x.shape[0]} does not split into {parts} equal parts")
        # Every parts-th row: each device then finds its share of each part among its own rows.
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return constrain(x, None, SAMPLES)

    def accumulated(params: Params, frozen: Params, batch: Batch, key: jax.Array):
        def add(total, part):
            index, piece = part
            result = whole(params, frozen, piece, keys.fold(key, index))
            return jax.tree.map(jnp.add, total, result), None

        pieces = jax.tree.map(split, batch)
        shapes = jax.eval_shape(whole, params, frozen, jax.tree.map(lambda x: x[0], pieces), key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(parts), pieces))
        return jax.tree.map(lambda x: x / parts, total)

    return accumulated


def make_step(task: Task, tx: optax.GradientTransformation, cfg: Any) -> Callable[..., Any]:
    """The pure step: (state, frozen, batch, key, rate) -> (state, metrics).

    `key` is the phase's; the step folds its own number in. `rate` is the learning rate, traced.
    """
    gradients = _gradients(task, cfg.optim.accumulate)

    def step(state: State, frozen: Params, batch: Batch, key: jax.Array, rate: jax.Array):
        grads, metrics = gradients(state.params, frozen, batch, keys.fold(key, state.step))
        updates, opt = tx.update(grads, state.opt, state.params)
        params = jax.tree.map(lambda p, u: p + rate * u, state.params, updates)
        ema, *others = (
            averaged(old, params, ema_decay(state.step, decay, cfg.ema.warmup))
            for old, decay in zip((state.ema, *state.others), decays(cfg), strict=True)
        )
        metrics = {**metrics, "grad_norm": optax.global_norm(grads)}
        return State(state.step + 1, params, ema, opt, tuple(others)), metrics

    return step


def many(step: Callable[..., Any]) -> Callable[..., Any]:
    """So many steps in one call: `step` scanned over batches [k, B, ...] and rates [k].

    Metrics are means over the steps.
    """

    def steps(state: State, frozen: Params, batches: Batch, key: jax.Array, rates: jax.Array):
        def one(state: State, given: tuple[Batch, jax.Array]) -> tuple[State, Metrics]:
            return step(state, frozen, given[0], key, given[1])

        state, metrics = jax.lax.scan(one, state, (batches, rates))
        return state, jax.tree.map(jnp.mean, metrics)

    return steps
