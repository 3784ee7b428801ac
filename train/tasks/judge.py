"""Training the judge of the toybox on true renders and on damaged ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from mv2_jax import config
from mv2_jax.errors import InputError
from mv2_jax.toybox import judge, judge_data
from mv2_jax.train import worlds
from mv2_jax.train.report import grid, to_uint8
from mv2_jax.train.task import Batch, Component, Params, Task


def make(cfg: Any, begin: Mapping[str, Component], folder: Path) -> Task:
    """The task; it goes on from `begin["judge"]` where there is one.

    Raises:
        InputError: the batch is no multiple of what the plan of a batch needs.
    """
    del folder
    held = begin.get("judge")
    sizes = held.config if held else config.from_dict(cfg.model.judge.to_dict())
    if cfg.batch % judge_data.UNIT:
        raise InputError(f"batch: the judge needs a multiple of {judge_data.UNIT}")

    def loss(params: Params, frozen: Params, batch: Batch, key: jax.Array):
        del frozen
        return judge.judge_loss(params, batch, key, sizes)

    def batches(seed: int, start: int) -> Iterator[Batch]:
        step = start
        while True:
            yield judge_data.judge_batch(worlds.step_key(seed, step), cfg.batch, sizes)
            step += 1

    def sample(params: Params, frozen: Params, key: jax.Array):
        """The frames of a batch that it learns from."""
        del params, frozen
        frames = judge_data.judge_batch(key, judge_data.UNIT, sizes)["frames"]
        return grid(to_uint8(frames), columns=judge_data.UNIT // 2)

    return Task(
        init=lambda key: held.params if held else judge.init(sizes, key),
        frozen={},
        loss=loss,
        batches=batches,
        components=lambda params: {"judge": params},
        configs=lambda params: {"judge": sizes},
        sample=sample,
    )
