"""A training step beside PyTorch's: one network, weights and batch, in turn, in one process.

    python benchmarks/train_step.py toybox toybox-video --runs 5
    python benchmarks/train_step.py unet --small         # a tenth of the channels

A step is a forward and a backward pass through all of the network, clipping by the global norm,
AdamW and the moving average: ours as `mv2 train` makes it, torch's with its fused AdamW and foreach
operations, diffusers' network in eager mode. Networks are those of `mv2 bench cascade`; the loss is
the mean square of the output's distance from fixed noise. Both sides' losses are printed: they must
agree, or the figures compare nothing. Above 1 ours is faster.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Threads that wait by spinning would take the cores from the other side.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax
import jax.numpy as jnp
import numpy as np
import torch

from mv2_jax import compiler
from mv2_jax.convert.beside import randomise
from mv2_jax.convert.beside.case import Case, noise
from mv2_jax.convert.beside.cases import CASES
from mv2_jax.diffusion import keys
from mv2_jax.train import optim
from mv2_jax.train.phase import phase
from mv2_jax.train.state import create, make_step
from mv2_jax.train.task import Task

RATE = 1e-4
Step = Callable[[], float]


def theirs(case: Case, folder: Path, cfg: Any, batch: dict[str, np.ndarray]) -> Step:
    """Torch's step, a call of which returns the loss; leaves the weights in `folder`."""
    module = randomise(case.torch()).train()
    case.save(module, folder)
    params = list(module.parameters())
    optimiser = torch.optim.AdamW(
        params,
        lr=RATE,
        betas=(cfg.optim.b1, cfg.optim.b2),
        eps=cfg.optim.eps,
        weight_decay=cfg.optim.weight_decay,
        fused=True,
    )
    average = [p.detach().clone() for p in params]
    given = {name: torch.from_numpy(x) for name, x in case.inputs().items()}
    target = torch.from_numpy(batch["target"])

    def step() -> float:
        optimiser.zero_grad()
        loss = (case.theirs(module, given)[0] - target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, cfg.optim.clip)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1.0 - cfg.ema.decay)
        return loss.item()

    return step


def ours(case: Case, folder: Path, cfg: Any, batch: dict[str, np.ndarray]) -> Step:
    """Our step from the weights in `folder`, compiled as the training loop compiles it."""

    def loss(params: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
        out = case.ours(jnp.float32, params, {k: v for k, v in batch.items() if k != "target"})[0]
        value = jnp.mean(jnp.square(out - batch["target"]))
        return value, {"loss": value}

    nothing: Any = None  # of a task only its loss is used
    task = Task(nothing, {}, loss, nothing, nothing, nothing)
    tx = optim.transformation(cfg.optim)
    state = create(case.convert(folder), tx)
    args = (state, {}, jax.device_put(batch), keys.seed(0), jnp.float32(RATE))
    lowered = jax.jit(make_step(task, tx, cfg), donate_argnums=0).lower(*args)
    compiled = lowered.compile(compiler_options=compiler.options(state.params))
    rest = args[1:]

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, *rest)
        return float(metrics["loss"])

    return step


def timed(step: Step) -> tuple[float, float, float]:
    """The loss, seconds by the clock and seconds of CPU of one step."""
    wall, cpu = time.perf_counter(), time.process_time()
    loss = step()
    return loss, time.perf_counter() - wall, time.process_time() - cpu


def compare(name: str, small: bool, runs: int) -> None:
    """A line on one network."""
    case, cfg = CASES[name](small), phase("t2i", optim={"clip": 1.0})
    given = case.inputs()
    batch = {**given, "target": noise(*given["x"].shape, seed=9)}
    with tempfile.TemporaryDirectory() as folder:
        sides = [make(case, Path(folder), cfg, batch) for make in (theirs, ours)]
    first = [timed(step)[0] for step in sides]
    rows = np.array([[timed(step) for step in sides] for _ in range(runs)])  # [runs, side, 3]
    (_, wall, cpu), (_, our_wall, our_cpu) = np.median(rows, axis=0)
    print(
        f"{name}: torch {wall:.2f} s, {cpu:.2f} s of CPU; ours {our_wall:.2f}, {our_cpu:.2f}; "
        f"ratio {wall / our_wall:.2f} by the clock, {cpu / our_cpu:.2f} in CPU time; losses at the "
        f"first step {first[0]:.6f} and {first[1]:.6f}, "
        f"at the last {rows[-1, 0, 0]:.6f} and {rows[-1, 1, 0]:.6f}",
        flush=True,
    )


def main() -> None:
    """The command of this module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("networks", nargs="+", choices=("toybox", "toybox-video", "unet", "video"))
    parser.add_argument("--small", action="store_true", help="narrow networks, small planes")
    parser.add_argument("--runs", type=int, default=5, help="steps of each side that are timed")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.networks:
        compare(name, args.small, args.runs)


if __name__ == "__main__":
    main()
