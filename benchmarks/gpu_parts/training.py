"""Part e: a training step of I2V at SD1.5's size, optimiser and averages included.

As in I2V's recipes, the motion modules, the appearance encoder and the ControlNet learn in fp32,
and the rest is frozen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpu_parts import jobs, networks
from gpu_parts.bench import Bench, Part
from mv2_jax.infer import rehearse
from mv2_jax.stages import stage

TRAINED = ("motion", "image_attn", "control")
CLIPS, FRAMES, SIDE = 2, 16, 256


@dataclass
class Planned:
    job: jobs.Job
    frozen: dict[str, Any]
    state: Any
    batch: dict[str, Any]


def plan(bench: Bench) -> Planned:
    from mv2_jax.train import optim, phase
    from mv2_jax.train.state import create, make_step
    from mv2_jax.train.task import Task

    preset = networks.preset("sd15", bench.small)
    side = preset.I2V.size if bench.small else (SIDE, SIDE)
    frames = preset.I2V.frames if bench.small else FRAMES
    net = rehearse.build(preset, {}, bench.dtype).keyframes
    net = stage.with_stage(net, size=side, frames=frames)
    trees = dict(bench.weights.shapes(preset))
    trees["motion"] = trees["motion_i2v"]
    trained = {name: trees[name] for name in TRAINED}
    frozen = {name: trees[name] for name in net.trees if name not in TRAINED}

    def loss(params: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
        return stage.loss({**frozen, **params}, net, batch, key)

    cfg = phase.phase("i2v")
    task = Task(lambda key: trained, frozen, loss, lambda seed, start: iter(()), dict, dict)
    tx = optim.transformation(cfg.optim)
    step = jax.jit(make_step(task, tx, cfg), donate_argnums=0)
    state = jax.eval_shape(lambda params: create(params, tx), trained)

    def shape(*sizes: int, of: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, of)

    length = preset.TEXT.max_length
    batch = {
        "latent": shape(CLIPS, *net.latent_shape),
        "image": shape(CLIPS, *side, 3),
        "ids": shape(CLIPS, length, of=jnp.int32),
        "null_ids": shape(length, of=jnp.int32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    args = (state, frozen, batch, key, shape())
    return Planned(bench.compiler.job("the training step", step, args), frozen, state, batch)


def run(bench: Bench, planned: Planned) -> None:
    program = planned.job.program(bench.part_ends)
    frozen = bench.weights.make(planned.frozen)
    made = bench.weights.make({"state": planned.state.params, "ema": planned.state.ema})
    zeros = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype)), planned.state)
    # Parameters are given away at each step: nothing else may hold these.
    bench.weights.drop("state"), bench.weights.drop("ema")
    state = zeros._replace(params=made.pop("state"), ema=made.pop("ema"))
    rng = np.random.default_rng(0)

    def noise(x: jax.ShapeDtypeStruct) -> np.ndarray:
        if x.dtype == jnp.int32:
            return np.ones(x.shape, np.int32)
        return rng.uniform(-1, 1, x.shape).astype(np.float32)

    batch = jax.device_put(jax.tree.map(noise, planned.batch))
    spent, key, metrics = [], jax.random.key(0), {}
    while len(spent) < 6 and (len(spent) < 2 or bench.left > 0):
        began = time.monotonic()
        state, metrics = jax.block_until_ready(program(state, frozen, batch, key, np.float32(1e-5)))
        spent.append(time.monotonic() - began)
    took, job = float(np.median(spent[1:])), planned.job
    clips, count, height, width = planned.batch["latent"].shape[:4]
    factor = planned.batch["image"].shape[1] // height
    bench.results.row(
        "e",
        step=f"I2V, {clips} clips of {count} frames, {width * factor}x{height * factor}",
        steps=f"{len(spent) - 1} after the first",
        ms=1e3 * took,
        TFLOP=job.flops / 1e12,
        **{"MFU %": bench.mfu(job.flops, took), "GiB": job.bytes / 2**30},
        **{"clips/s": clips / took, "compiling s": job.seconds, "loss": float(metrics["loss"])},
    )


PART = Part("e", "a training step of I2V", 40, plan, run)
