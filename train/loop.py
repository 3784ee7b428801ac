"""The one training loop: every stage and every phase goes through `run`."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import params as trees
from mv2_jax.train import optim
from mv2_jax.train.checkpoint import Checkpoints
from mv2_jax.train.data import Prefetch
from mv2_jax.train.placement import Placement
from mv2_jax.train.report import Report
from mv2_jax.train.state import State, create, make_step
from mv2_jax.train.task import Params, Task


@dataclass(frozen=True)
class Outcome:
    """How a phase went. `finished` is False where a signal stopped it: it can be resumed.

    `minutes` counts this and all resumed runs; `tflop` is an estimate (see `Programs`).
    """

    state: State
    finished: bool
    minutes: float
    tflop: float


@dataclass
class Programs:
    """The compiled step, one per batch shape, and the work each does.

    `step` is jitted. The FLOPs are XLA's own count over the traced program. It counts the body of
    a loop once, so chunked attention is underestimated; accumulation is put right by `repeats`.
    """

    step: Any
    repeats: int = 1
    compiled: dict[Any, tuple[Any, float]] = field(default_factory=dict)

    def __call__(self, *args: Any) -> tuple[State, dict[str, jax.Array], float]:
        """Runs the step; returns its results and its FLOPs."""
        shapes = tuple((name, x.shape, str(x.dtype)) for name, x in sorted(args[2].items()))
        if shapes not in self.compiled:
            lowered = self.step.lower(*args)
            cost = lowered.cost_analysis() or {}
            flops = float(cost.get("flops", 0.0)) * self.repeats
            self.compiled[shapes] = (lowered.compile(), flops)
            sizes = ", ".join(f"{name} {list(shape)}" for name, shape, _ in shapes)
            print(f"compiled for {sizes}: about {flops / 1e9:.3g} GFLOP a step", flush=True)
        program, flops = self.compiled[shapes]
        state, metrics = program(*args)
        return state, metrics, flops


class Stop:
    """Turns SIGTERM and SIGINT into a flag while it is entered (in the main thread only)."""

    def __init__(self) -> None:
        self.asked = False

    def _ask(self, number: int, _frame: Any) -> None:
        if self.asked:  # a second one means it
            raise KeyboardInterrupt
        self.asked = True
        print(f"stopping after this step ({signal.Signals(number).name})", flush=True)

    @contextlib.contextmanager
    def catching(self) -> Iterator[Stop]:
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        old = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


class Run:
    """One phase under way: the state, the clock and everything that happens on a rhythm."""

    def __init__(
        self, task: Task, cfg: Any, folder: Path, resume: bool, clock: Callable[[], float]
    ) -> None:
        optim.check(cfg.optim)
        self.task, self.cfg, self.clock = task, cfg, clock
        self.place = Placement(cfg.mesh)
        tx = optim.transformation(cfg.optim)
        key = jax.random.key(cfg.seed)
        self.key, init, self.sample_key = jax.random.split(key, 3)
        self.state = self.place.state(create(task.init(init), tx))
        step = self.place.jit(make_step(task, tx, cfg), self.state)
        self.programs = Programs(step, cfg.optim.accumulate)
        self.frozen = self.place.params(task.frozen)
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.elapsed, self.flop = 0.0, 0.0
        if resume and self.checkpoints.newest() is not None:
            self.state, notes = self.checkpoints.restore(self.state)
            self.elapsed, self.flop = notes["elapsed"], notes["flop"]
        self.step = int(self.state.step)
        self.report = Report(folder, cfg.name, self.step)
        self.started = clock() - self.elapsed
        self.window: list[dict[str, jax.Array]] = []
        self.marks = {"log": clock(), "save": clock(), "sheet": clock()}
        size = trees.count(self.state.params) / 1e6
        resumed = f", resumed at step {self.step}" if self.step else ""
        print(f"[{cfg.name}] {size:.2f}M parameters in training{resumed}", flush=True)

    def fraction(self) -> float:
        """How far the phase has come, by its own clock; 1 is the end."""
        done = self.step / max(1, self.cfg.steps)
        if self.cfg.optim.clock == "time" and self.cfg.max_minutes:
            done = max(done, self.elapsed / 60 / self.cfg.max_minutes)
        return done

    def over(self) -> bool:
        """True once the planned steps or minutes are used up."""
        late = self.cfg.max_minutes and self.elapsed >= 60 * self.cfg.max_minutes
        return self.step >= self.cfg.steps or bool(late)

    def advance(self, batch: dict[str, Any]) -> None:
        """One step, then whatever is due."""
        rate = jnp.float32(optim.rate(self.cfg.optim, self.step, self.fraction()))
        self.state, metrics, flops = self.programs(self.state, self.frozen, batch, self.key, rate)
        if self.window:
            # At most two steps in flight: more would run the clock ahead of the work.
            jax.block_until_ready(self.window[-1])
        self.window.append(metrics)
        self.step += 1
        self.flop += flops
        self.elapsed = self.clock() - self.started
        cfg = self.cfg
        if self.step % cfg.log_every == 0 or self.step == 1:
            self.log(float(rate))
        if cfg.sample_minutes and self.due("sheet", 60 * cfg.sample_minutes):
            self.sheet()
        if cfg.checkpoint_minutes and self.due("save", 60 * cfg.checkpoint_minutes):
            self.save()

    def due(self, what: str, seconds: float) -> bool:
        """True every `seconds`."""
        if self.clock() - self.marks[what] < seconds:
            return False
        self.marks[what] = self.clock()
        return True

    def log(self, rate: float) -> None:
        """Means over the steps since the last line.

        Raises:
            FloatingPointError: the loss is not finite; the last checkpoint is still good.
        """
        steps = len(self.window)
        names = sorted(self.window[-1], key=lambda name: (name != "loss", name))
        host = jax.device_get(self.window)
        means = {name: float(np.mean([m[name] for m in host if name in m])) for name in names}
        self.window.clear()
        now = self.clock()
        speed = steps / max(now - self.marks["log"], 1e-9)
        self.marks["log"] = now
        extra = {"rate": rate, "steps_per_s": speed, "minutes": self.elapsed / 60}
        if not np.isfinite(means["loss"]):
            raise FloatingPointError(
                f"the loss of phase {self.cfg.name!r} is {means['loss']} by step {self.step}: "
                "lower optim.lr or optim.clip and run again; it resumes from the last checkpoint"
            )
        self.report.log(self.step, self.cfg.steps, {**means, **extra})

    def sheet(self) -> None:
        """Draws the loss curves, and samples with the averaged weights."""
        self.report.curves()
        if self.task.sample is not None:
            image = self.task.sample(self.state.ema, self.frozen, self.sample_key)
            self.report.sheet(self.step, image)

    def save(self) -> None:
        self.checkpoints.save(self.step, self.state, {"elapsed": self.elapsed, "flop": self.flop})

    def go(self, stop: Stop) -> Outcome:
        """Trains until the phase is over or `stop` is asked for."""
        try:
            with self.place.scope():
                batches = self.task.batches(self.cfg.seed, self.step)
                with Prefetch(batches, self.place.batch) as feed:
                    while not (self.over() or stop.asked):
                        self.advance(next(feed))
                if self.window:
                    self.log(optim.rate(self.cfg.optim, self.step - 1, self.fraction()))
                self.save()
                if self.over():
                    self.sheet()
        finally:
            self.checkpoints.close()
        return Outcome(self.state, self.over(), self.elapsed / 60, self.flop / 1e12)


def run(
    task: Task,
    cfg: Any,
    folder: Path,
    *,
    resume: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Trains one phase in `folder`, from its newest checkpoint if there is one and `resume`.

    Args:
        task: what to train.
        cfg: the phase's settings, as `mv2_jax.train.phase.phase` makes them.
        folder: gets checkpoints/, metrics.jsonl, curves.png and samples/.
        resume: False starts from step 0; the folder should be empty then.
        clock: seconds; tests hand in their own.

    The phase ends at `steps`, or at `max_minutes` of training counted over all resumed runs. On
    SIGTERM or SIGINT it writes a checkpoint and returns with `finished` False.

    Raises:
        FloatingPointError: the loss is no longer finite.
        ValueError: settings that do not hold, or a checkpoint of another network.
    """
    with Stop().catching() as stop:
        return Run(task, cfg, folder, resume, clock).go(stop)


def ema_params(outcome: Outcome) -> Params:
    """The averaged weights of a phase, on the host."""
    return jax.device_get(outcome.state.ema)
