"""A stage's network compiled for hardware that is not here, at full size; `mv2 plan` runs it.

XLA's compilers for TPU and CUDA need no device, only a description of one. What they are given is
the very program of the stage at full size, split over the mesh by the sharding table; what they
answer is the memory of each device, and for TPU their own estimate of the time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mv2_jax import config, sharding
from mv2_jax.diffusion import keys as named
from mv2_jax.errors import InputError
from mv2_jax.lookup import one_of
from mv2_jax.stages import stage as stages


@dataclass(frozen=True)
class Plan:
    """What the compiler answered; bytes are of one device.

    `arguments` are parameters and inputs, `temporaries` what is live beside them at worst.
    `seconds` is the compiler's estimate of one call of the network, None where it gives none.
    `refused` is its message where the program does not fit, and then there are no numbers.
    """

    arguments: int = 0
    temporaries: int = 0
    outputs: int = 0
    seconds: float | None = None
    refused: str | None = None


def full_size(stage: str) -> stages.Config:
    """The stage at the paper's size, of SD1.5's shape with AnimateDiff's and IP-Adapter-Plus's."""
    schedule, networks = config.ScheduleConfig(), {"text_encoder": config.TextConfig()}
    if stage == "t2i":
        own = config.StageConfig(config.UNetConfig(), schedule, (1024, 1024))
        return stages.build(stage, own, networks, factor=8)
    unet = config.UNetConfig(motion=config.MotionConfig(), image_tokens=True)
    side = 600 if stage == "i2v" else 1048
    own = config.StageConfig(unet, schedule, (side, side), frames=32)
    networks["image_encoder"] = config.VisionConfig()
    networks["image_attn"] = config.ImageProjectionConfig()
    networks["control"] = config.ControlNetConfig()
    return stages.build(stage, own, networks, factor=8)


def resize(cfg: Any, size: tuple[int, int] | None, frames: int | None, dtype: str) -> Any:
    """A stage's config with another (height, width), number of frames and type of computation.

    Raises:
        InputError: a size that does not divide into latent cells, too many frames.
    """
    stage = cfg.stage
    if size is not None:
        if any(side % cfg.factor or side < cfg.factor for side in size):
            raise InputError(f"--size: both sides must be multiples of {cfg.factor}")
        stage = dataclasses.replace(stage, size=size)
    if frames is not None:
        most = 1 if cfg.name == "t2i" else cfg.backbone.frames or frames
        if not 1 <= frames <= most:
            raise InputError(f"--frames: this stage makes from 1 to {most} frames, not {frames}")
        stage = dataclasses.replace(stage, frames=frames)
    return dataclasses.replace(cfg, stage=stage, dtype=jnp.dtype(dtype))


def compile_stage(cfg: stages.Config, mesh: Mesh, batch: int) -> Plan:
    """Compiles one call of the stage's network, with guidance, for the devices of `mesh`."""
    function, arguments = denoiser(cfg, batch)
    placed = tuple(_place(tree, mesh) for tree in arguments[1:])
    weights = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, cfg.dtype, sharding=where),
        arguments[0],
        sharding.shardings(arguments[0], mesh, stages.rules(cfg)),
    )
    try:
        with jax.set_mesh(mesh):
            compiled = jax.jit(function).lower(weights, *placed).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Plan(refused=str(error).partition("RESOURCE_EXHAUSTED:")[2].strip())
    memory = compiled.memory_analysis()
    seconds = (compiled.cost_analysis() or {}).get("optimal_seconds", 0.0)
    return Plan(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes,
        seconds if seconds > 0 else None,
    )


def denoiser(cfg: stages.Config, batch: int) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
    """(function, abstract arguments (parameters, x, t, told)) of one call of the network.

    Encoders run once a video and elsewhere, and are left out. x [R, B, T, h, w, C] and what its
    rows are told are those that the stage's chain has at a step.
    """
    tree = jax.eval_shape(lambda key: stages.init(cfg, key), named.seed(0))
    inputs, condition = stages.blank(cfg, batch), stages.condition.__wrapped__
    conditioning = jax.eval_shape(partial(condition, cfg=cfg, rule=cfg.rule), tree, inputs)
    x = jax.ShapeDtypeStruct((cfg.rule.rows, batch, *cfg.latent_shape), jnp.float32)
    t = jax.ShapeDtypeStruct(x.shape[:2], jnp.float32)

    def predict(params: Any, x: jax.Array, t: jax.Array, conditioning: Any) -> jax.Array:
        return stages.predict(params, cfg, x, t, conditioning)

    return predict, (stages.at_steps(tree, cfg), x, t, conditioning)


def _place(tree: Any, mesh: Mesh) -> Any:
    """Inputs [R, B, ...] with their samples split."""

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        where = NamedSharding(mesh, P(None, sharding.fit(sharding.SAMPLES, leaf.shape[1], mesh)))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(place, tree)


def stage_config(stage: str, weights: str | None = None) -> stages.Config:
    """A stage of a cascade folder, or (None) at the paper's size. Raises as `bundle.read` does."""
    if weights is None:
        return full_size(stage)
    from mv2_jax import bundle, cascade

    return cascade.load(bundle.read(weights)).stage(stage)


def mesh(sizes: dict[str, int] | None, devices: Sequence[Any], frames: int) -> Mesh:
    """The mesh of these sizes, or (None): frames over context as far as they divide, then fsdp.

    Raises:
        InputError: an unknown axis, or sizes that do not make up the number of devices.
    """
    if sizes is None:
        context = math.gcd(len(devices), frames)
        sizes = {"fsdp": len(devices) // context, "context": context}
    for name in sizes:
        one_of(name, sharding.AXES, "axis", "--mesh")
    try:
        return sharding.make_mesh(**sizes, devices=devices)
    except ValueError as error:
        raise InputError(f"--mesh: {error}") from None
