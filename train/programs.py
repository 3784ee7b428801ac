"""The compiled step of a phase, and the work that it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from mv2_jax.train import processes
from mv2_jax.train.state import State


@dataclass
class StepPrograms:
    """The compiled step, one per batch shape, and the work each does.

    `step` is jitted. The FLOPs are XLA's own count over the traced program, or `devices` times the
    compiled one's, a device's share, on backends that count no other. It counts the body of a loop
    once, so chunked attention is underestimated; accumulation is put right by `repeats`, and the
    steps of one call by `calls`.
    """

    step: Any
    repeats: int = 1
    devices: int = 1
    calls: int = 1
    compiled: dict[Any, tuple[Any, float]] = field(default_factory=dict)

    @staticmethod
    def shapes(batch: Mapping[str, Any]) -> Any:
        """What a program is compiled for."""
        return tuple((name, x.shape, str(x.dtype)) for name, x in sorted(batch.items()))

    def __call__(self, *args: Any) -> tuple[State, dict[str, jax.Array], float]:
        """Runs the step; returns its results and its FLOPs."""
        shapes = self.shapes(args[2])
        if shapes not in self.compiled:
            lowered = self.step.lower(*args)
            compiled = lowered.compile()
            # GPUs count no more than the compiled program.
            ways = ((lowered, 1), (compiled, self.devices))
            costs = ((way.cost_analysis() or {}, share) for way, share in ways)
            counts = (float(cost.get("flops", 0.0)) * share for cost, share in costs)
            flops = next((count for count in counts if count > 0), 0.0)
            flops *= self.repeats * self.calls
            self.compiled[shapes] = (compiled, flops)
            sizes = ", ".join(f"{name} {list(shape)}" for name, shape, _ in shapes)
            work = f": about {flops / self.calls / 1e9:.3g} GFLOP a step" if flops else ""
            processes.say(f"compiled for {sizes}{work}")
        program, flops = self.compiled[shapes]
        state, metrics = program(*args)
        return state, metrics, flops
