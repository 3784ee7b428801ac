"""Part b: one step of SD1.5's video UNet, here and in diffusers under torch.compile.

The networks are those of `benchmarks/parity.py video-v3`, which compares their values; here each
has random weights of its own. Both are given what a guided step sees: two rows of 16 frames.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpu_parts import jobs, networks
from gpu_parts.bench import TUNED, Bench, Part
from mv2_jax.config import MotionConfig, UNetConfig
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context


@dataclass
class Both:
    """Ours under way, and torch's process; `lacking` says why there is none."""

    job: jobs.Job
    function: Any
    args: tuple[Any, ...]
    torch: subprocess.Popen | None
    lacking: str = ""


def config(small: bool) -> tuple[UNetConfig, int, int]:
    """The network, the side of its latent plane, and how many frames."""
    cfg = UNetConfig(motion=MotionConfig(norm_scope="clip"))
    return (networks.narrow(cfg), 9, 3) if small else (cfg, 64, 16)


def plan(bench: Bench) -> Both:
    cfg, side, frames = config(bench.small)
    network, dtype = UNet(cfg, bench.dtype), bench.dtype

    def shape(*sizes: int, of: Any = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, of)

    x, t = shape(2, frames, side, side, 4), shape(2, of=jnp.int32)
    text = shape(2, 77, cfg.context_width)
    tree = jax.eval_shape(
        lambda x, t, text: network.init(jax.random.key(0), x, t, Context(text)), x, t, text
    )["params"]
    tree = jax.tree.map(lambda leaf: shape(*leaf.shape), tree)

    def step(params: Any, x: Any, t: Any, text: Any) -> jax.Array:
        return network.apply({"params": params}, x, t, Context(text))

    function, args = jax.jit(step), (tree, x, t, text)
    job = bench.compiler.job("the video UNet's step", function, args)
    return Both(job, function, args, *_start(bench))


def _start(bench: Bench) -> tuple[subprocess.Popen | None, str]:
    """torch's side, which compiles at once and waits to be told to measure."""
    missing = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]
    if missing:
        return None, f"beside diffusers: needs {' and '.join(missing)}, which are not here"
    cfg, side, frames = config(bench.small)
    told = {
        "channels": cfg.channels,
        "layers": cfg.layers_per_block,
        "transformers": cfg.transformers,
        "heads": cfg.heads,
        "motion_heads": cfg.motion.heads,
        "context": cfg.context_width,
        "groups": cfg.norm_groups,
        "side": side,
        "frames": frames,
        "cpu": jax.default_backend() == "cpu",
        "cache": str(bench.cache / "inductor"),
    }
    command = [sys.executable, str(Path(__file__).with_name("unet_torch.py")), json.dumps(told)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, **pipes), ""


def run(bench: Bench, both: Both) -> None:
    args = _arrays(bench, both.args)
    name = f"{np.shape(args[1])} in {jnp.dtype(bench.dtype).name}"
    ours = bench.time(both.job, args)
    bench.results.row("b", step=name, side="mv2_jax, the run's XLA flags", **ours)
    theirs = _theirs(bench, both, name, ours["TFLOP"])
    best = ours["ms"]
    if jax.default_backend() == "gpu":
        best = min(best, _tuned(bench, both, args, name) or best)
    for mode, took in theirs.items():
        text = f"{mode}: {took / best:.2f} times our fastest's time (the bar: 1.3 when compiled)"
        bench.results.remark("b", text)


def _tuned(bench: Bench, both: Both, args: tuple[Any, ...], name: str) -> float | None:
    """Milliseconds of the same step with XLA trying convolutions' and products' algorithms."""
    try:
        job = bench.compiler.job("the tuned step", both.function, both.args, options=TUNED)
        cells = bench.time(job, args)
    except jobs.Late as late:
        bench.results.remark("b", f"{late}: {TUNED}")
        return None
    bench.results.row("b", step=name, side=f"mv2_jax, {TUNED}", **cells)
    return cells["ms"]


def _theirs(bench: Bench, both: Both, name: str, tflop: float) -> dict[str, float]:
    """Milliseconds of torch's step by how it ran; adds its rows."""
    if both.torch is None:
        bench.results.remark("b", both.lacking)
        return {}
    try:
        said, _ = both.torch.communicate("go\n", timeout=max(1.0, bench.left - _OURS))
    except subprocess.TimeoutExpired:
        both.torch.kill()
        said, _ = both.torch.communicate()
        bench.results.remark("b", "torch's side was stopped: its time was up")
    found = {}
    for line in said.splitlines():
        if not line.startswith('{"mode"'):
            continue
        made = json.loads(line)
        found[made["mode"]] = made["ms"]
        bench.results.row(
            "b",
            step=name,
            side=f"diffusers, torch {made['torch']}, {made['mode']}",
            ms=made["ms"],
            TFLOP=tflop,
            **{"MFU %": bench.mfu(tflop * 1e12, made["ms"] / 1e3), "GiB": made["GiB"]},
            **{"compiling s": made["compiling"]},
        )
    if not found:
        tail = [line for line in said.splitlines() if line.strip()][-3:]
        bench.results.remark("b", "torch's side made nothing: " + " / ".join(tail)[:400])
    return found


_OURS = 30.0  # seconds kept for what comes after torch's side


def _arrays(bench: Bench, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Weights and inputs on the device."""
    tree, x, _, text = args
    rng = np.random.default_rng(0)

    def noise(shape: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.device_put(rng.standard_normal(shape.shape, np.float32).astype(shape.dtype))

    params = bench.weights.make({"step": tree})["step"]
    return params, noise(x), jax.device_put(np.array([681, 681], np.int32)), noise(text)


PART = Part("b", "one step of the video UNet beside diffusers'", 80, plan, run)
