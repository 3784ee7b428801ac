"""Part d: what comes after denoising at the paper's size: VAE decoding and RIFE."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpu_parts import jobs, networks
from gpu_parts.bench import Bench, Part
from mv2_jax.stages import interpolators, latents


def plan(bench: Bench) -> dict[str, tuple[jobs.Job, tuple[Any, ...]]]:
    """The two programs, with their arguments' shapes."""
    preset = networks.preset("paper", bench.small)
    trees, stage = bench.weights.shapes(preset), preset.V2V
    height, width = stage.size
    times = int(preset.DEFAULTS["vfi"]["between"]) + 1
    factor = preset.VAE.factor
    cells = (1, stage.frames, height // factor, width // factor, preset.VAE.latent_channels)

    def decode(params: Any, z: jax.Array) -> jax.Array:
        return latents.decode(params, preset.VAE, z, bench.dtype)

    between = partial(interpolators.interpolate, dtype=bench.dtype)

    def interpolate(params: Any, frames: jax.Array) -> jax.Array:
        return between(params, preset.RIFE, frames, times)

    asked = {
        f"VAE decoding, {stage.frames} frames of {width}x{height}": (decode, "vae", cells),
        f"RIFE, x{times}, {stage.frames} frames of {width}x{height}": (
            interpolate,
            "interpolator",
            (1, stage.frames, height, width, 3),
        ),
    }
    made = {}
    for name, (function, component, shape) in asked.items():
        args = (trees[component], jax.ShapeDtypeStruct(shape, jnp.float32))
        made[name] = bench.compiler.job(name, jax.jit(function), args), (component, args)
    return made


def run(bench: Bench, planned: dict[str, tuple[jobs.Job, tuple[Any, ...]]]) -> None:
    for name, (job, (component, (tree, shape))) in planned.items():
        params = bench.weights.make({component: tree})[component]
        # Frames one after another are alike to no network, but all differ.
        some = np.random.default_rng(0).uniform(-1, 1, shape.shape[2:]).astype(np.float32)
        moved = [np.roll(some, step, axis=0) for step in range(shape.shape[1])]
        x = jax.device_put(np.stack(moved)[None])
        try:
            bench.results.row("d", what=name, **bench.time(job, (params, x), most=3.0))
        except jobs.Late as late:
            bench.results.remark("d", str(late))


PART = Part("d", "decoding and interpolation at the paper's size", 25, plan, run)
