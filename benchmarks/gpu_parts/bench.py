"""What all parts share: the clock, the sizes, the compiler, and results written as they come."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_parts import jobs

# What XLA is told where it is to try convolutions' and products' algorithms on the device.
TUNED = {"xla_gpu_autotune_level": 4}


@dataclass
class Results:
    """Facts of the run, and rows and remarks by part: in gpu.json, and as tables in gpu.md.

    Written whole at every change, so that whatever ends the run leaves what there was.
    """

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.RLock, repr=False)

    def part(self, name: str, title: str) -> dict[str, Any]:
        with self._lock:
            return self.parts.setdefault(name, {"title": title, "rows": [], "remarks": []})

    def row(self, part: str, **cells: Any) -> None:
        """Adds a row to a part's table and says it."""
        with self._lock:
            self.parts[part]["rows"].append(cells)
        said = ", ".join(f"{name} {_cell(value)}" for name, value in cells.items())
        print(f"  {said}", flush=True)
        self.write()

    def remark(self, part: str, text: str) -> None:
        """Adds a sentence to a part: what was cut, is lacking, or failed."""
        with self._lock:
            self.parts[part]["remarks"].append(text)
        print(f"  {text}", flush=True)
        self.write()

    def write(self) -> None:
        with self._lock:
            whole = {**self.facts, "parts": self.parts}
            for name, text in (
                ("gpu.json", json.dumps(whole, indent=1) + "\n"),
                ("gpu.md", self.table()),
            ):
                scratch = self.folder / f".{name}"
                scratch.write_text(text, encoding="utf-8")
                scratch.replace(self.folder / name)

    def table(self) -> str:
        """The results for a reader, in Markdown."""
        lines = [f"- {name}: {_cell(value)}" for name, value in self.facts.items()]
        for name, part in self.parts.items():
            lines += ["", f"## {name}: {part['title']}"]
            columns = list(dict.fromkeys(key for row in part["rows"] for key in row))
            if columns:
                lines += ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
            for row in part["rows"]:
                cells = (_cell(row.get(column, "")) for column in columns)
                lines.append("| " + " | ".join(cells) + " |")
            if part["remarks"]:
                lines += ["", *(f"- {remark}" for remark in part["remarks"])]
        return "\n".join(["# benchmarks/gpu.py", "", *lines]) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, (list, tuple)):
        return "; ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


@dataclass
class Bench:
    """A run. `ends` is on `time.monotonic`; `part_ends` is when the part under way has to stop."""

    results: Results
    compiler: jobs.Compiler
    weights: Any
    cache: Path
    small: bool
    dtype: Any
    ends: float
    peak: float | None  # TFLOP/s
    part_ends: float = 0.0

    @property
    def left(self) -> float:
        """Seconds until the part under way has to stop."""
        return self.part_ends - time.monotonic()

    def mfu(self, flops: float, seconds: float) -> float | None:
        """Useful FLOPs over what the card could have done in that time, in percent."""
        if not self.peak or seconds <= 0:
            return None
        return 100 * flops / seconds / (self.peak * 1e12)

    def time(self, job: jobs.Job, args: tuple[Any, ...], most: float = 1.0) -> dict[str, Any]:
        """Cells of a program that runs alone: milliseconds, MFU, memory, how long it compiled.

        Raises:
            Late: it is not compiled by the end of the part.
        """
        took = jobs.seconds(job.program(self.part_ends), args, self.part_ends, most)
        return {
            "ms": 1e3 * took,
            "TFLOP": job.flops / 1e12,
            "MFU %": self.mfu(job.flops, took),
            "GiB": job.bytes / 2**30,
            "compiling s": job.seconds,
            "compiling beside": self.compiler.busy,
        }


@dataclass(frozen=True)
class Part:
    """A part: `plan` asks for programs (in a thread of its own), `run` measures them.

    `seconds`: the most that `run` takes of the clock, where the parts before it leave as much.
    """

    name: str
    title: str
    seconds: float
    plan: Callable[[Bench], Any]
    run: Callable[[Bench, Any], None]
