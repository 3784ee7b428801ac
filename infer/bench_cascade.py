"""Each network of a cascade beside PyTorch's on a CPU, in one run: time and memory as ratios.

diffusers or transformers makes a network with random weights and saves it; this package converts
the saved folder, and both compute the same from the same inputs, in fp32. Each side is a process
of its own, so that its memory can be told, and they take turns: one runs while the other waits, so
that what else the machine does meets both. The first run of each is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mv2_jax.convert.beside import difference
from mv2_jax.errors import InputError

NETWORKS = ("toybox", "toybox-video", "clip", "rife", "vae", "unet", "video", "sdxl")
"""In the order in which they run. `beside.cases` says what each is."""

LARGE = "sdxl"
SIDES = ("torch", "mv2")


def command(args: argparse.Namespace) -> int:
    """What `mv2 bench cascade` does; 1 where the two sides did not compute the same.

    Raises:
        InputError: PyTorch or diffusers is not installed, or a side ended before its time.
    """
    for package in ("torch", "diffusers", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"mv2 bench cascade needs {package}, which is not installed: "
                "pip install 'mv2-jax[convert]'"
            )
    threads = args.threads or _cores()
    if not args.json:
        print(f"{threads} threads, fp32, median of {args.runs} runs in turn; above 1: mv2 is ahead")
        print(
            f"{'':14}{'torch s':>9}{'mv2 s':>9}{'wall':>7}{'CPU':>7}"
            f"{'torch GiB':>11}{'mv2 GiB':>9}{'memory':>8}{'differ':>9}",
            flush=True,
        )
    same = True
    for name in args.only or [name for name in NETWORKS if name != LARGE or args.sdxl]:
        told = beside(name, args.runs, threads, small=args.small, plain=args.plain)
        print(json.dumps(told) if args.json else line(told), flush=True)
        same = same and told["difference"] <= told["bound"]
    return 0 if same else 1


def _cores() -> int:
    """Those that this process may use."""
    may = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(may(0)) if may else os.cpu_count() or 1


def line(told: dict[str, Any]) -> str:
    """One network's figures for a person."""
    wall, gib = ([told[side][what] for side in SIDES] for what in ("wall_s", "peak_gib"))
    ratios = told["ratios"]
    return (
        f"{told['network']:14}{wall[0]:9.3f}{wall[1]:9.3f}{ratios['wall']:7.2f}{ratios['cpu']:7.2f}"
        f"{gib[0]:11.2f}{gib[1]:9.2f}{ratios['memory']:8.2f}{told['difference']:9.0e}"
        + ("" if told["difference"] <= told["bound"] else "  NOT THE SAME")
    )


def beside(name: str, runs: int, threads: int, small: bool, plain: bool) -> dict[str, Any]:
    """One network's medians, ratios (torch's over ours) and every run.

    Args:
        small: of tiny widths. plain: compiled with XLA's own options (`mv2_jax.compiler`).
    """
    flags = ["--small"] * small + ["--plain"] * plain
    with (
        tempfile.TemporaryDirectory(prefix="mv2-bench-") as scratch,
        contextlib.ExitStack() as stack,
    ):
        sides = {
            side: stack.enter_context(_side(side, name, Path(scratch), threads, flags))
            for side in SIDES  # one after the other: ours reads what torch's wrote
        }
        took: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for turn in range(runs):
            for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
                took[side].append(sides[side].ask("run"))
        ends = {side: sides[side].ask("end") for side in SIDES}
        outputs = [_arrays(Path(scratch) / f"{side}.npz") for side in SIDES]
    told: dict[str, Any] = {"network": name, "threads": threads, "runs": runs}
    for side in SIDES:
        told[side] = {
            "wall_s": statistics.median(run["wall"] for run in took[side]),
            "cpu_s": statistics.median(run["cpu"] for run in took[side]),
            "peak_gib": ends[side]["peak"] / 2**30,
            "each": took[side],
        }
    theirs, ours = (told[side] for side in SIDES)
    what = {"wall": "wall_s", "cpu": "cpu_s", "memory": "peak_gib"}
    told["ratios"] = {key: theirs[field] / ours[field] for key, field in what.items()}
    told["difference"] = difference(*reversed(outputs))[0]
    return {**told, "bound": ends["torch"]["bound"], "options": ends["mv2"]["options"]}


def _arrays(path: Path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[name] for name in sorted(file)]


class Side:
    """A process that answers each word on a line with an object on a line."""

    def __init__(self, process: subprocess.Popen, told: str) -> None:
        self._process, self._told = process, told

    def ask(self, word: str | None) -> dict[str, Any]:
        """What it answers; None waits for what it says by itself. Raises InputError: it ended."""
        process = self._process
        assert process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError):
            if word is not None:
                process.stdin.write(word + "\n")
                process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            code = process.wait()
            why = "; is there memory enough?" if code == -9 else ""
            raise InputError(f"{self._told} ended with code {code}{why}")
        return json.loads(answer)


@contextlib.contextmanager
def _side(side: str, name: str, folder: Path, threads: int, flags: Sequence[str]) -> Iterator[Side]:
    """One side's process, its network loaded and warm."""
    module = [sys.executable, "-m", "mv2_jax.convert.beside.side", side, name, str(folder)]
    count = str(threads)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": count, "OMP_NUM_THREADS": count}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*module, *flags], env=env, **pipes) as process:
        made = Side(process, f"{name}: the side of {side}")
        try:
            made.ask(None)
            yield made
        finally:
            process.kill()
