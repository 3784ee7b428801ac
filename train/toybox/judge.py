"""Training the judge of the toybox on true renders and on damaged ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from mv2_jax import config
from mv2_jax.errors import InputError
from mv2_jax.lookup import nearest
from mv2_jax.toybox import judge, judge_data
from mv2_jax.train import unread
from mv2_jax.train.report import grid, to_uint8
from mv2_jax.train.task import Batch, Component, Params, Task
from mv2_jax.train.toybox import worlds


def make(cfg: Any, begin: Mapping[str, Component], folder: Path) -> Task:
    """The task; it goes on from `begin["judge"]` where there is one.

    `train` names the halves to train, "frames" and "motion"; they share nothing, so one may be
    trained further at a fraction of the cost of both.

    Raises:
        InputError: the batch is no multiple of what the plan of a batch needs, an unknown half, or
            one half alone of a judge that has not been trained, or a setting that changes nothing.
    """
    del folder
    held = begin.get("judge")
    halves = tuple(cfg.train) if "train" in cfg else judge.HALVES
    for name in halves:
        if name not in judge.HALVES:
            raise InputError(f"train: the judge has no {name!r}{nearest(name, judge.HALVES)}")
    if not held and set(halves) != set(judge.HALVES):
        raise InputError("train: one half alone is trained on from a judge in `begin`")
    if cfg.batch % judge_data.UNIT:
        raise InputError(f"batch: the judge needs a multiple of {judge_data.UNIT}")
    if held:
        unread.begun(cfg, "judge", held.config)
    unread.refuse(cfg, ("train", "begin.judge", "model.judge"))
    sizes = held.config if held else config.from_dict(cfg.model.judge.to_dict())
    kept = {k: v for k, v in held.params.items() if judge.half(k) not in halves} if held else {}

    def loss(params: Params, frozen: Params, batch: Batch, key: jax.Array):
        return judge.judge_loss({**frozen, **params}, batch, key, sizes)

    def batches(seed: int, start: int) -> Iterator[Batch]:
        step = start
        while True:
            yield judge_data.judge_batch(worlds.step_key(seed, step), cfg.batch, sizes, halves)
            step += 1

    def sample(params: Params, frozen: Params, key: jax.Array):
        """The frames of a batch that it learns from."""
        del params, frozen
        frames = judge_data.judge_batch(key, judge_data.UNIT, sizes)["frames"]
        return grid(to_uint8(frames), columns=judge_data.UNIT // 2)

    def init(key: jax.Array) -> Params:
        whole = held.params if held else judge.init(sizes, key)
        return {name: tree for name, tree in whole.items() if judge.half(name) in halves}

    return Task(
        init=init,
        frozen=kept,
        loss=loss,
        batches=batches,
        components=lambda params: {"judge": {**kept, **params}},
        configs=lambda params: {"judge": sizes},
        sample=sample,
    )
