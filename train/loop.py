"""The one training loop: every stage and every phase goes through `run`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import params as trees
from mv2_jax.diffusion import keys
from mv2_jax.errors import InputError
from mv2_jax.train import optim, processes
from mv2_jax.train.checkpoint import Checkpoints
from mv2_jax.train.data import Prefetch, stacked
from mv2_jax.train.meter import Meter
from mv2_jax.train.phase import seed_of
from mv2_jax.train.placement import Placement, host, near
from mv2_jax.train.profile import Profile
from mv2_jax.train.programs import StepPrograms
from mv2_jax.train.report import Report
from mv2_jax.train.state import State, create, decays, make_step, many
from mv2_jax.train.stop import Stop
from mv2_jax.train.task import Params, Task, compute_dtype
from mv2_jax.train.validate import Validation


@dataclass(frozen=True)
class Outcome:
    """How a phase went. `finished` is False where a signal stopped it: it can be resumed.

    `minutes` counts this and all resumed runs; `tflop` is an estimate (see `train.programs`).
    `chosen` says which average the phase ends in, as `train.state.decays` counts; `errors` are the
    validation errors of all, where there are any.
    """

    state: State
    finished: bool
    minutes: float
    tflop: float
    chosen: int = 0
    errors: tuple[float, ...] = ()


def check(cfg: Any) -> None:
    """Refuses numbers of a phase that do not go together, before anything runs.

    Raises:
        InputError: a count below 1, or a batch that the devices cannot share out evenly: each
            would work on all of it.
    """
    parts = cfg.optim.accumulate
    counts = {"batch": cfg.batch, "log_every": cfg.log_every, "keep": cfg.keep}
    counts["optim.accumulate"] = parts
    counts["steps_per_call"] = calls = cfg.get("steps_per_call", 1)
    counts.update({f"mesh.{name}": size for name, size in cfg.mesh.items()})
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} is {count}: it must be 1 or more")
    if calls > 1 and cfg.steps % calls:
        raise InputError(f"steps is {cfg.steps}: it must be a multiple of steps_per_call = {calls}")
    if calls > 1 and max(cfg.mesh.values()) > 1:
        raise InputError(f"steps_per_call is {calls}: over a mesh it must be 1")
    rows = {"batch": cfg.batch}
    if "data" in cfg and cfg.data.get("image_every"):
        rows["data.image_batch"] = cfg.data.image_batch
    ways = cfg.mesh.get("data", 1) * cfg.mesh.get("fsdp", 1)
    unit = parts * ways
    for name, count in rows.items():
        if count % unit:
            raise InputError(
                f"{name} is {count}: for mesh.data x mesh.fsdp = {ways} and optim.accumulate = "
                f"{parts} it must be a multiple of {unit}, such as "
                f"{max(1, round(count / unit)) * unit}"
            )


class Run:
    """One phase under way: the state, the clock and everything that happens on a rhythm."""

    def __init__(
        self,
        task: Task,
        cfg: Any,
        folder: Path,
        resume: bool,
        clock: Callable[[], float],
        stop: Stop,
    ) -> None:
        optim.check(cfg.optim)
        check(cfg)
        self.task, self.cfg, self.clock, self.folder = task, cfg, clock, folder
        self.place = Placement(cfg.mesh, task.rules, cfg.offload)
        if self.place.mesh is None and jax.process_count() > 1:
            raise InputError(
                f"mesh: all 1, but {jax.process_count()} processes with {jax.device_count()} "
                f"devices are to train together: set mesh.data={jax.device_count()}"
            )
        tx = optim.transformation(cfg.optim)
        key = keys.seed(seed_of(cfg))
        self.key, init, self.sample_key = keys.split(key, 3)
        self.state = self.place.state(self.fresh(init, tx))
        self.calls = cfg.get("steps_per_call", 1)
        step = make_step(task, tx, cfg)
        step = self.place.step(many(step) if self.calls > 1 else step, self.state)
        devices = 1 if self.place.mesh is None else self.place.mesh.size
        self.programs = StepPrograms(step, cfg.optim.accumulate, devices, self.calls)
        self.frozen = self.place.frozen(task.frozen)
        every = cfg.validate.every
        self.validation = Validation(task, cfg, self.place) if every else None
        self.validated: tuple[int, tuple[float, ...]] = (-1, ())  # a step, and what was found
        self.told: dict[str, float] = {}  # the same as metrics, for the next line
        self.checkpoints = Checkpoints(folder / "checkpoints", cfg.keep, cfg.keep_best)
        self.before, self.flop = 0.0, 0.0
        if resume and self.checkpoints.good is not None:
            self.state, notes = self.checkpoints.restore(self.state)
            self.before, self.flop = notes["elapsed"], notes["flop"]
        self.step, self.elapsed = int(self.state.step), self.before
        self.report = None
        if processes.first():
            with self.writing():
                self.report = Report(folder, cfg, self.step)
        self.meter = Meter(devices, compute_dtype(cfg.precision) == jnp.bfloat16)
        self.profile = Profile(cfg.profile, folder / "profile")
        self.stop = stop
        self.watch = processes.Watch(clock, lambda: stop.asked)
        self.window: list[dict[str, jax.Array]] = []
        self.last: dict[str, jax.Array] | None = None
        self.losses: list[tuple[float, int]] = []  # means and their steps, since the last save
        self.marks = {"save": self.elapsed, "sheet": self.elapsed}
        size = trees.count(self.state.params) / 1e6
        resumed = f", resumed at step {self.step}" if self.step else ""
        processes.say(f"[{cfg.name}] {size:.2f}M parameters in training{resumed}")

    def fresh(self, key: jax.Array, tx: Any) -> State:
        """The state of step 0.

        Over a mesh the parameters are made on the host and the rest from them where it lies, so
        that no device ever holds what is split over many.
        """
        others = len(self.cfg.ema.also)
        if self.place.mesh is None:
            return create(self.task.init(key), tx, others)

        def made(params: Params) -> tuple[State, None]:
            return create(params, tx, others), None

        with jax.default_device(host()):
            tree = jax.tree.map(lambda x: np.asarray(x, np.float32), self.task.init(key))
        shapes, _ = jax.eval_shape(made, tree)
        state, _ = self.place.jit(made, shapes)(self.place.params(tree))
        return state

    def fraction(self, ahead: int = 0) -> float:
        """How far the phase has come by its own clock, so many steps ahead; 1 is the end."""
        done = (self.step + ahead) / max(1, self.cfg.steps)
        if self.cfg.optim.clock == "time" and self.cfg.max_minutes:
            done = max(done, self.elapsed / 60 / self.cfg.max_minutes)
        return done

    def over(self) -> bool:
        """True once the planned steps or minutes are used up."""
        late = self.cfg.max_minutes and self.elapsed >= 60 * self.cfg.max_minutes
        return self.step >= self.cfg.steps or bool(late)

    def advance(self, batch: dict[str, Any]) -> None:
        """A step, or the steps of one call, then whatever is due."""
        each = range(self.calls)
        rates = [optim.rate(self.cfg.optim, self.step + i, self.fraction(i)) for i in each]
        rates = np.array(rates, np.float32)
        rate = rates[-1]
        self.profile.before(self.step + 1)
        new = self.programs.shapes(batch) not in self.programs.compiled
        with self.place.scope(), self.meter.aside() if new else contextlib.nullcontext():
            self.state, self.last, flops = self.programs(
                self.state, self.frozen, batch, self.key, rates if self.calls > 1 else rate
            )
        if self.window:
            # At most two steps in flight: more would run the clock ahead of the work.
            jax.block_until_ready(self.window[-1])
        self.window.append(self.last)
        first = self.step == 0
        logged, self.step = self.step // self.cfg.log_every, self.step + self.calls
        self.flop += flops
        rows = next(iter(batch.values())).shape
        self.meter.step(rows[0] * rows[1] if self.calls > 1 else rows[0], flops, self.calls)
        if self.profile.ends(self.step):
            jax.block_until_ready(self.last)
            self.profile.close()
        self.look()
        cfg = self.cfg
        every = cfg.validate.every
        due = every and self.step // every > (self.step - self.calls) // every
        if self.validation and (due or self.over()):
            self.validate()
        if self.step // cfg.log_every > logged or first:
            self.log(float(rate))
        # Saved first: a sheet may take longer than a machine that is taken away leaves.
        if cfg.checkpoint_minutes and self.due("save", 60 * cfg.checkpoint_minutes):
            self.save()
        if cfg.sample_minutes and self.due("sheet", 60 * cfg.sample_minutes):
            with self.meter.aside():
                self.sheet()

    def validate(self) -> tuple[float, ...]:
        """The validation errors of the averages; the next line of the log tells them."""
        if self.validated[0] == self.step:
            return self.validated[1]
        with self.meter.aside():
            jax.block_until_ready(self.state)
            averages = (self.state.ema, *self.state.others)
            errors = [self.validation(*near((one, self.frozen))) for one in averages]
        self.told = self.validation.told(errors, decays(self.cfg))
        self.validated = self.step, tuple(float(one.mean()) for one in errors)
        return self.validated[1]

    def look(self) -> None:
        """Looks at the clock: all that goes by time goes by what it showed last."""
        self.watch.tick()
        self.elapsed = self.before + self.watch.seconds

    def due(self, what: str, seconds: float) -> bool:
        """True every `seconds`."""
        if self.elapsed - self.marks[what] < seconds:
            return False
        self.marks[what] = self.elapsed
        return True

    def finite(self, values: Mapping[str, Any], *names: str) -> None:
        """Raises FloatingPointError where one of the values is not finite."""
        for name in names:
            if not np.isfinite(values[name]):
                raise self.diverged(f"the {name}", f"{values[name]} by step {self.step}")

    def diverged(self, what: str, how: str) -> FloatingPointError:
        """The error that says so, and from where the phase goes on."""
        phase = self.cfg.name.rpartition("/")[2]
        with contextlib.suppress(InputError):
            self.checkpoints.finish()
        return FloatingPointError(
            f"{what} of phase {phase!r} is {how}; {self.checkpoints.last_good()}: lower "
            f"{phase}.optim.lr or {phase}.optim.clip and run again to go on from there"
        )

    def log(self, rate: float) -> None:
        """Means over the steps since the last line.

        Raises:
            FloatingPointError: the loss is not finite; the last checkpoint is still good.
        """
        steps = len(self.window) * self.calls
        jax.block_until_ready(self.window[-1])
        speed = self.meter.take()
        names = sorted(self.window[-1], key=lambda name: (name != "loss", name))
        host = jax.device_get(self.window)
        means = {name: float(np.mean([m[name] for m in host if name in m])) for name in names}
        self.window.clear()
        self.checkpoints.check()
        extra = {**self.told, "rate": rate, **speed, "minutes": self.elapsed / 60}
        self.told = {}
        self.finite(means, "loss")
        self.losses.append((means["loss"], steps))
        if self.report:
            with self.writing():
                self.report.log(self.step, self.cfg.steps, {**means, **extra})

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Tells of files that cannot be written as a person needs it: what is left to go on from.

        Raises:
            InputError: in place of OSError.
        """
        try:
            yield
        except OSError as error:
            with contextlib.suppress(InputError):
                self.checkpoints.finish()
            raise InputError(
                f"{error.filename or self.folder} cannot be written "
                f"({error.strerror or error}); {self.checkpoints.last_good()}: make room there, or "
                "mount it again, and run the same command again"
            ) from None

    def sheet(self) -> None:
        """Draws the loss curves, and samples with the averaged weights.

        Of several processes the first samples alone, on one of its devices, from weights gathered
        on its host: tasks sample with arrays of their own, which no other process has.
        """
        if self.report:
            with self.writing():
                self.report.curves()
        if self.task.sample is None:
            return
        if jax.process_count() == 1:
            with self.place.scope():
                image = self.task.sample(*near((self.state.ema, self.frozen)), self.sample_key)
        else:
            ema = processes.gather(near(self.state.ema))
            if not self.report:
                return
            image = self.task.sample(ema, self.task.frozen, self.sample_key)
        with self.writing():
            self.report.sheet(self.step, image)

    def save(self) -> None:
        """Begins to write a checkpoint.

        Raises:
            FloatingPointError: the last step's loss or gradient, or any number of the state, is not
                finite; nothing is written.
            InputError: it cannot be written.
        """
        if self.last is not None:
            self.finite(jax.device_get(self.last), "loss", "grad_norm")
        losses, steps = zip(*self.losses) if self.losses else ((), ())
        loss = float(np.average(losses, weights=steps)) if losses else None
        notes = {"elapsed": self.elapsed, "flop": self.flop}
        try:
            self.checkpoints.save(self.step, self.state, notes, loss)
        except FloatingPointError as error:
            raise self.diverged(str(error), f"not finite by step {self.step}") from None
        self.losses.clear()

    def go(self) -> Outcome:
        """Trains until the phase is over or a stop is asked for."""
        try:
            if self.checkpoints.good is None:  # whether it can be written is known before it is due
                self.save()
                self.checkpoints.finish()
            batches = self.task.batches(seed_of(self.cfg), self.step)
            batches = stacked(batches, self.calls) if self.calls > 1 else batches
            alone = jax.process_count() == 1  # several must take a step together, or none of them
            with Prefetch(batches, self.place.batch, lambda: alone and self.stop.asked) as feed:
                self.look()
                self.meter.begin()
                while not (self.over() or self.watch.stop):
                    with self.meter.waiting():
                        batch = feed.take()
                    if batch is None:
                        break
                    self.advance(batch)
            errors = self.validate() if self.validation and self.over() else ()
            if self.window:
                self.log(optim.rate(self.cfg.optim, self.step - 1, self.fraction()))
            self.save()
            self.checkpoints.finish()
            if self.over():
                self.sheet()
        finally:
            self.profile.close()
            if self.report:
                self.report.close()
            self.checkpoints.close(done=self.over())
        best = int(np.argmin(errors)) if errors else 0
        time, work = self.elapsed / 60, self.flop / 1e12
        return Outcome(self.state, self.over(), time, work, best, errors)


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
        folder: gets checkpoints/, metrics.jsonl, curves.png, samples/, tensorboard/ and profile/.
        resume: False starts from step 0; the folder should be empty then.
        clock: seconds; tests hand in their own.

    The phase ends at `steps`, or at `max_minutes` of training counted over all resumed runs. On
    SIGTERM or SIGINT it writes a checkpoint and returns with `finished` False. Of several processes
    all call it, with the same arguments; a signal to any of them stops all, and the first one's
    clock counts. They share `folder`: the first writes, and each its part of a checkpoint.

    Raises:
        FloatingPointError: the loss is no longer finite.
        InputError: a batch that does not split over the devices (see `check`).
        ValueError: settings that do not hold, or a checkpoint of another network.
    """
    with Stop().catching() as stop:
        return Run(task, cfg, folder, resume, clock, stop).go()


def averages(outcome: Outcome) -> list[Params]:
    """A phase's averages, on the host; all processes must ask together."""
    return [processes.gather(near(one)) for one in (outcome.state.ema, *outcome.state.others)]
