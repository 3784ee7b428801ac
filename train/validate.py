"""Validation: the error by timestep, on samples and noise that are the same every time.

The training loss of a step hangs on which samples and timesteps it drew, far more than on how well
the network has learnt. Here both are fixed, so that two numbers of a run, or of two runs with the
same settings, differ by the weights alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.diffusion import keys as named
from mv2_jax.errors import InputError
from mv2_jax.train.phase import seed_of
from mv2_jax.train.placement import Placement
from mv2_jax.train.task import Batch, Params, Task

LOSS = "val_loss"  # what the mean over positions is called among the metrics


def positions(levels: int) -> tuple[float, ...]:
    """The middles of `levels` equal parts of a process, 0 being clean and 1 noise."""
    return tuple((level + 0.5) / levels for level in range(levels))


class Validation:
    """The mean squared error of a network's own output, its conditions kept, unweighted.

    `validate.batches` batches are read once and kept on the host: of `validate.root` where that is
    named, else of the training source by a seed of their own.

    Raises:
        InputError: the task has no error by timestep.
    """

    def __init__(self, task: Task, cfg: Any, place: Placement) -> None:
        if task.error_at is None:
            raise InputError(f"validate.every: task {cfg.task!r} has no error by timestep")
        self.cfg, self.place = cfg, place
        self.positions = positions(cfg.validate.levels)
        self.source = task.held_out or task.batches
        self.kept: list[Batch] = []
        seed = seed_of(cfg)
        self.seed = (seed + 7) % 2**31  # not the samples of the first steps
        self.key = named.fold(named.seed(seed), "validate")
        error_at = task.error_at

        def errors(params: Params, frozen: Params, batch: Batch, key: jax.Array) -> jax.Array:
            def one(u: jax.Array) -> jax.Array:
                return error_at(params, frozen, batch, key, u)

            return jax.lax.map(one, jnp.asarray(self.positions, jnp.float32))

        self.errors = jax.jit(errors)

    def __call__(self, params: Params, frozen: Params) -> np.ndarray:
        """The errors [levels] of these weights; all processes must ask together."""
        if not self.kept:
            batches = self.source(self.seed, 0)
            self.kept = list(itertools.islice(batches, self.cfg.validate.batches))
            getattr(batches, "close", lambda: None)()
        found = []
        for number, batch in enumerate(self.kept):
            with self.place.scope():
                key = named.fold(self.key, number)
                told = self.errors(params, frozen, self.place.batch(batch), key)
            found.append(np.asarray(jax.device_get(told), np.float64))
        return np.mean(found, axis=0)

    def told(self, errors: Sequence[np.ndarray], decays: Sequence[float]) -> dict[str, float]:
        """The errors of all averages as metrics: of the first by position, of others the mean."""
        first, *others = errors
        by = {f"{LOSS}_{u:.2f}": float(x) for u, x in zip(self.positions, first)}
        more = {f"{LOSS}_ema{d:g}": float(x.mean()) for d, x in zip(decays[1:], others)}
        return {LOSS: float(first.mean()), **by, **more}
