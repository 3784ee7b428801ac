"""Programs that compile side by side in threads, and a cascade's that are planned before they run.

Tracing and lowering hold Python's lock, compiling does not: a thread that plans feeds several that
compile, while the main one measures what is ready.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpu_parts import flops


class Late(Exception):
    """What was to be measured is not there before the part's time is up."""


@dataclass
class Job:
    """One program: its useful FLOPs, and once it is compiled the seconds that took."""

    name: str
    flops: float
    out: Any
    future: Future = field(repr=False)
    runs: int = 0

    def program(self, until: float) -> Any:
        """The compiled program.

        Raises:
            Late: it is not there by `until`, on the clock of `time.monotonic`.
        """
        try:
            return self.future.result(max(0.0, until - time.monotonic()))[0]
        except NotYet:
            raise Late(f"{self.name} was not compiled in time") from None

    @property
    def seconds(self) -> float:
        """Of lowering and compiling, beside the other threads."""
        return self.future.result()[1]

    @property
    def bytes(self) -> int:
        """What the program holds on the device at worst, arguments and results included."""
        memory = self.future.result()[0].memory_analysis()
        parts = ("argument", "output", "temp")
        total = sum(getattr(memory, f"{part}_size_in_bytes") for part in parts)
        return total - memory.alias_size_in_bytes


class Compiler:
    """Compiles what it is given, first come first served, in `threads` threads."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "compile")
        self._jobs: dict[Any, Job] = {}
        self._lock = threading.Lock()

    def job(
        self,
        name: str,
        function: Any,
        args: tuple[Any, ...],
        static: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
    ) -> Job:
        """The job of `function(*args, **static)`; what was asked for before is found again.

        Args:
            function: a `jax.jit` of something, whose static arguments are keywords.
            args: trees of arrays, or of their shapes.
            options: XLA's, for this program alone.
        """
        static = static or {}
        leaves, structure = jax.tree.flatten(args)
        shapes = tuple((np.shape(leaf), str(leaf.dtype)) for leaf in leaves)
        key = (function, tuple(sorted(static.items())), structure, shapes, str(options))
        with self._lock:  # the planning thread and the main one may want the same
            if key not in self._jobs:
                traced = function.trace(*jax.tree.map(_shape, args), **static)
                future = self._pool.submit(self._compile, traced, options)
                self._jobs[key] = Job(name, flops.count(traced.jaxpr), traced.out_info, future)
            return self._jobs[key]

    def _compile(self, traced: Any, options: dict[str, Any] | None) -> tuple[Any, float]:
        began = time.monotonic()
        compiled = traced.lower().compile(compiler_options=options)
        return compiled, time.monotonic() - began

    @property
    def busy(self) -> int:
        """How many programs are being compiled, or wait for it."""
        return sum(not job.future.done() for job in list(self._jobs.values()))

    def stop(self) -> None:
        """Drops what has not begun to compile."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)


def seconds(program: Any, args: tuple[Any, ...], until: float, most: float = 1.0) -> float:
    """Seconds of one run: the median of up to five groups, after a first run that is left out.

    A group holds as many runs as fill a twentieth of a second, so that waiting for the host does
    not count; all together take about `most` seconds, and one group at least is measured.
    """
    jax.block_until_ready(program(*args))
    one = _group(program, args, 1)
    size = max(1, min(100, int(0.05 / max(one, 1e-6))))
    groups, begun = [one] if size == 1 else [], time.monotonic()
    while not groups or (len(groups) < 5 and time.monotonic() < min(begun + most, until)):
        groups.append(_group(program, args, size))
    return float(np.median(groups))


def _group(program: Any, args: tuple[Any, ...], size: int) -> float:
    began = time.monotonic()
    jax.block_until_ready([program(*args) for _ in range(size)])
    return (time.monotonic() - began) / size


@dataclass
class Call:
    """A program that a stage ran: seconds, FLOPs that were of use, denoising steps (0: none)."""

    name: str
    seconds: float
    flops: float
    steps: int
    left_out: int = 0


class Staged:
    """Stands for `mv2_jax.programs.Programs` in a cascade: plans its programs, then times them.

    While it plans nothing runs: every call gives zeros of the result's shapes. While it measures, a
    chain whose time is up is cut: its last state is given back, and the steps left out are counted.
    """

    def __init__(
        self,
        compiler: Compiler,
        until: Callable[[], float],
        options: dict[str, Any] | None = None,
    ) -> None:
        self._compiler, self._until, self._options = compiler, until, options
        self._last: dict[int, Any] = {}
        self.planning = True
        self.jobs: list[Job] = []
        self.calls: list[Call] = []
        self.waited = 0.0  # seconds, for programs that were not there yet

    def __call__(self, stage: str, function: Any, *args: Any, progress: Any = None, **static: Any):
        label = f"{stage} {getattr(function, '__name__', 'program').strip('_')}"
        job = self._compiler.job(label, function, args, static, self._options)
        if job not in self.jobs:
            self.jobs.append(job)
        if self.planning:
            return jax.tree.map(_zeros, job.out)
        before, late = _index(args), time.monotonic() > self._until()
        if late and id(job) in self._last and before is not None:
            self.calls.append(Call(label, 0.0, 0.0, 0, left_out=_steps(static)))
            return self._last[id(job)]
        asked = time.monotonic()
        program = job.program(self._until())
        began = time.monotonic()
        self.waited += began - asked
        out = jax.block_until_ready(program(*args))
        took, share, steps = time.monotonic() - began, 1.0, 0
        if before is not None:  # past a chain's end its program runs idle
            steps = int(_index((out,)) or 0) - before
            share = steps / _steps(static)
        job.runs += 1
        self._last = {id(job): out}
        self.calls.append(Call(label, took, job.flops * share, steps))
        return out

    def take(self) -> tuple[list[Call], float]:
        """The calls since the last time, and the seconds that they waited for their programs."""
        taken = self.calls, self.waited
        self.calls, self.waited, self._last = [], 0.0, {}
        return taken


def _index(args: Iterable[Any]) -> int | None:
    """Where the sampler's state among these stands; None where there is none."""
    found = (arg.index for arg in args if hasattr(arg, "index") and hasattr(arg, "memory"))
    first = next(found, None)
    return None if first is None else int(first)


def _steps(static: dict[str, Any]) -> int:
    """The denoising steps that a program makes."""
    return int(static.get("k") or static.get("steps") or 1)


def _zeros(shape: Any) -> Any:
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), shape.shape)
    return np.zeros(shape.shape, shape.dtype)
