"""Part a0: a video of the shipped cascade by `mv2 generate`, cold and warm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from gpu_parts.bench import Bench, Part

ROOT = Path(__file__).parents[2]
PROMPT, SEED = "a red ball bouncing over a meadow", "7"


def start(bench: Bench) -> subprocess.Popen:
    """`mv2 generate` in a process of its own, with an empty cache of programs."""
    shutil.rmtree(_cache(bench), ignore_errors=True)
    return _generate(bench, "shipped.mp4")


def measure(bench: Bench, cold: subprocess.Popen) -> None:
    """Waits for the first video, then makes it again with the programs that the first one kept."""
    first = _wait(bench, cold, "cold: empty cache, beside the other parts' compiling")
    if first is None:
        return
    warm = bench.results.folder / "shipped-warm.mp4"
    if _wait(bench, _generate(bench, warm.name), "warm: kept programs") is not None:
        same = warm.read_bytes() == (bench.results.folder / "shipped.mp4").read_bytes()
        bench.results.remark(
            "a0", f"the second video is {'' if same else 'not '}the first, by bytes"
        )
    for path in bench.results.folder.glob("shipped-warm*"):
        path.unlink()


def _generate(bench: Bench, name: str) -> subprocess.Popen:
    out = str(bench.results.folder / name)
    command = [sys.executable, "-m", "mv2_jax", "generate", PROMPT, "--seed", SEED, "-o", out]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(":"),
        "XDG_CACHE_HOME": str(_cache(bench)),
        # The other process holds most of the card's memory.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    process.began = time.monotonic()
    return process


def _wait(bench: Bench, process: subprocess.Popen, what: str) -> float | None:
    """Seconds until the process ended well; None, and a remark, where it did not."""
    try:
        said, _ = process.communicate(timeout=max(0.0, bench.left))
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        waited = time.monotonic() - process.began
        bench.results.remark("a0", f"{what}: stopped after {waited:.0f} s. {_last(said)}")
        return None
    took = time.monotonic() - process.began
    if process.returncode:
        bench.results.remark("a0", f"{what}: exit code {process.returncode}. {_last(said)}")
        return None
    bench.results.row("a0", run=what, **{"seconds, start to end": took}, said=_last(said))
    return took


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else ""


def _cache(bench: Bench) -> Path:
    return bench.cache / "shipped"


PART = Part("a0", "the shipped cascade's video, `mv2 generate`", 150, start, measure)
