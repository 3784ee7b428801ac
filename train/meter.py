"""How fast a phase trains, over the steps between two lines of its log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import jax

from mv2_jax.infer.machines import KNOWN


def peak_tflops(kind: str) -> float | None:
    """What the makers say of a device by JAX's name of its kind: dense bfloat16; None: unknown."""
    return next((chip.tflops for chip in KNOWN.values() if chip.kind == kind), None)


def memory() -> float:
    """GiB that the first device, or on a CPU the process, has held at the most so far."""
    from mv2_jax.infer.rehearse import peak

    return peak() / 2**30


class Meter:
    """Counts steps, samples, work and waiting; compiling and sheets are left out of all of it.

    Args:
        devices: how many share the work.
        half: whether networks compute in bfloat16, which the makers' peak is of.
    """

    def __init__(self, devices: int, half: bool) -> None:
        peak = peak_tflops(jax.devices()[0].device_kind) if half else None
        self._peak = peak and peak * devices
        self.begin()

    def begin(self) -> None:
        """Counts from now on."""
        self._since, self._aside, self._waited = time.perf_counter(), 0.0, 0.0
        self._steps, self._samples, self._flop = 0, 0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting for the next batch."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Around what is no part of a step: compiling, sheets."""
        began = time.perf_counter()
        yield
        self._aside += time.perf_counter() - began

    def step(self, samples: int, flop: float, steps: int = 1) -> None:
        """A step was made, or several, of so many samples and floating-point operations in all."""
        self._steps += steps
        self._samples += samples
        self._flop += flop

    def take(self) -> dict[str, float]:
        """What is known of the steps since the last call; to be called once they are done.

        `step_s` seconds a step, `input_wait` the share of time in which the device had no batch,
        `tflops` by XLA's count of the program (a lower bound, see `train.programs`), `mfu` its
        share of the makers' peak where that is known, `memory_gib` the peak so far.
        """
        seconds = max(time.perf_counter() - self._since - self._aside, 1e-9)
        told = {
            "steps_per_s": self._steps / seconds,
            "step_s": seconds / max(self._steps, 1),
            "samples_per_s": self._samples / seconds,
            "input_wait": min(self._waited / seconds, 1.0),
            "memory_gib": memory(),
        }
        if self._flop:
            told["tflops"] = self._flop / seconds / 1e12
            if self._peak:
                told["mfu"] = told["tflops"] / self._peak
        self.begin()
        return told
