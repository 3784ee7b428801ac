"""`mv2 train --dry-run`: what a phase would train, hold and take, from a few steps of it."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mv2_jax.errors import InputError
from mv2_jax.train import loop, processes, recipe
from mv2_jax.train.data import Prefetch
from mv2_jax.train.phase import seed_of
from mv2_jax.train.placement import HOST

STEPS = 3  # that are measured, after one that compiles
GIB = 2**30


def show(root: Path, short: str, cfg: Any, name: str) -> None:
    """Prints the plan of a phase. Nothing is left but what its data keep, such as latents.

    Raises:
        InputError: as `recipe.run_phase`.
    """
    try:
        begin = recipe.begin_from(root, short, cfg, name)
    except InputError as error:
        if name == cfg.order[0]:
            raise
        processes.say(f"phase {name}: {error}")
        return
    phase = copy.deepcopy(cfg.phases[name])
    phase.reports, phase.profile = (), ""
    task = recipe.make_task(phase, begin, root / short / name)
    with tempfile.TemporaryDirectory() as scratch:
        run = loop.Run(task, phase, Path(scratch), False, time.monotonic, loop.Stop())
        try:
            pace = _pace(run)
        finally:
            run.report and run.report.close()
            run.checkpoints.close()
    for line in _lines(name, run, *pace):
        processes.say(line)


def _pace(run: loop.Run) -> tuple[float, int]:
    """Seconds a step, its data included, and how many samples it has."""
    batches = run.task.batches(seed_of(run.cfg), 0)
    with Prefetch(batches, run.place.batch) as feed:
        for step in range(STEPS + 1):
            if step == 1:
                jax.block_until_ready(run.state)
                began = time.perf_counter()
            batch = feed.take()
            with run.place.scope():
                run.state, _, _ = run.programs(
                    run.state, run.frozen, batch, run.key, np.float32(0.0)
                )
        jax.block_until_ready(run.state)
        seconds = (time.perf_counter() - began) / STEPS
    return seconds, next(iter(batch.values())).shape[0]


def _lines(name: str, run: loop.Run, seconds: float, samples: int) -> Iterator[str]:
    cfg = run.cfg
    yield f"phase {name}: {cfg.task}, nothing is trained yet"
    for what, tree in (("trained", run.state.params), ("frozen", run.frozen)):
        sizes = {one: sum(leaf.size for leaf in jax.tree.leaves(tree[one])) for one in tree}
        parts = ", ".join(f"{one} {size / 1e6:.2f}M" for one, size in sizes.items() if size)
        yield f"  {what:<10} {sum(sizes.values()) / 1e6:.2f}M parameters: {parts or 'none'}"
    state, frozen = _held(run.state) / GIB, _held(run.frozen) / GIB
    yield f"  state      {state:.3f} GiB a device, and {frozen:.3f} GiB of frozen weights"
    program, flop = next(reversed(run.programs.compiled.values()))
    about = program.memory_analysis()
    if about is not None and about.temp_size_in_bytes:
        whole = (about.temp_size_in_bytes + about.argument_size_in_bytes) / GIB
        work = about.temp_size_in_bytes / GIB
        yield f"  a step     {whole:.3f} GiB a device, {work:.3f} of them activations and gradients"
    parts = f" in {cfg.optim.accumulate} parts" if cfg.optim.accumulate > 1 else ""
    yield f"  batch      {samples} samples{parts}, {flop / 1e9:.3g} GFLOP"
    yield f"  steps      {cfg.steps}, {cfg.steps * samples} samples"
    hours = cfg.steps * seconds / 3600
    limit = f"; it ends after {cfg.max_minutes / 60:.2f}" if cfg.max_minutes else ""
    yield f"  time       {hours:.2f} hours at {seconds:.3g} s a step, measured over {STEPS}{limit}"


def _held(tree: Any) -> int:
    """Bytes of a tree in one device's own memory."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != HOST
    )
