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
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mv2_jax import config, sharding
from mv2_jax.config import nearest
from mv2_jax.diffusion import keys as named
from mv2_jax.errors import InputError
from mv2_jax.stages import prompts, t2i, video


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


def full_size(stage: str) -> t2i.Config | video.Config:
    """The stage at the paper's size, of SD1.5's shape with AnimateDiff's and IP-Adapter-Plus's."""
    schedule, text = config.ScheduleConfig(), config.TextConfig()
    if stage == "t2i":
        own = config.StageConfig(config.UNetConfig(), schedule, (1024, 1024))
        return t2i.Config(own, text, factor=8)
    unet = config.UNetConfig(motion=config.MotionConfig(), image_tokens=True)
    side = 600 if stage == "i2v" else 1048
    return video.Config(
        config.StageConfig(unet, schedule, (side, side), frames=32),
        text,
        config.VisionConfig(),
        config.ImageProjectionConfig(),
        config.ControlNetConfig(),
        factor=8,
    )


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
        most = stage.unet.motion.max_frames if stage.unet.motion else 1
        if not 1 <= frames <= most:
            raise InputError(f"--frames: this stage makes from 1 to {most} frames, not {frames}")
        stage = dataclasses.replace(stage, frames=frames)
    return dataclasses.replace(cfg, stage=stage, dtype=jnp.dtype(dtype))


def compile_stage(stage: str, cfg: Any, mesh: Mesh, rows: int) -> Plan:
    """Compiles one call of the stage's network on `rows` samples for the devices of `mesh`."""
    function, arguments = denoiser(stage, cfg, rows)
    placed = tuple(_place(tree, mesh) for tree in arguments[1:])
    weights = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, cfg.dtype, sharding=where),
        arguments[0],
        sharding.shardings(arguments[0], mesh),
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


def denoiser(stage: str, cfg: Any, rows: int) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
    """(function, abstract arguments (parameters, x, t, condition)) of one call of the network."""
    dtype, float32 = cfg.dtype, jnp.float32
    module = t2i if stage == "t2i" else video
    # Encoders run once a video and elsewhere; only what every step needs is counted.
    tree = jax.eval_shape(lambda key: module.init(cfg, key), named.seed(0))
    prompt = jax.eval_shape(lambda: prompts.blank(cfg, rows))
    text = jax.ShapeDtypeStruct(prompt.text.shape, dtype)
    x = jax.ShapeDtypeStruct((rows, *cfg.latent_shape), float32)
    number = jax.ShapeDtypeStruct((rows,), float32)
    if stage == "t2i":
        parameters, condition = {"spatial": tree["spatial"]}, prompt.replace(text=text)
    else:
        parameters = {name: tree[name] for name in ("spatial", "motion", "control")}
        parameters["image_attn"] = {"unet": tree["image_attn"]["unet"]}
        projection = cfg.projection
        tokens = (rows, projection.tokens, projection.out_width)
        # A SparseCtrl sees the reference's latent, a ControlNet its pixels.
        shown = cfg.latent_shape[1:] if cfg.sparse else (*cfg.stage.size, 3)
        condition = video.Condition(
            text,
            jax.ShapeDtypeStruct(tokens, dtype),
            number,
            jax.ShapeDtypeStruct((rows, *shown), float32),
            number,
            prompt.pooled,
            prompt.size_ids,
        )

    def predict(params: Any, x: jax.Array, t: jax.Array, condition: Any) -> jax.Array:
        return module.predict(params, cfg, x, t, condition)

    return predict, (parameters, x, number, condition)


def _place(tree: Any, mesh: Mesh) -> Any:
    """Inputs with samples first, and the frames of latents split over context."""

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = [sharding.fit(sharding.SAMPLES, leaf.shape[0], mesh)]
        if leaf.ndim == 5:
            axes.append(sharding.fit("context", leaf.shape[1], mesh))
        where = NamedSharding(mesh, P(*axes))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(place, tree)


def stage_config(stage: str, weights: str | None = None) -> t2i.Config | video.Config:
    """A stage of a cascade folder, or (None) at the paper's size. Raises as `bundle.read` does."""
    if weights is None:
        return full_size(stage)
    from mv2_jax import bundle, cascade

    four = cascade.load(bundle.read(weights))
    return {"t2i": four.picture, "i2v": four.keyframes, "v2v": four.refined}[stage]


def rows(stage: str, batch: int) -> int:
    """How many samples the network sees at a time, with guidance, for `batch` videos."""
    return batch * (2 if stage == "t2i" else video.WAYS)


def mesh(sizes: dict[str, int] | None, devices: Sequence[Any], frames: int) -> Mesh:
    """The mesh of these sizes, or (None): frames over context as far as they divide, then fsdp.

    Raises:
        InputError: an unknown axis, or sizes that do not make up the number of devices.
    """
    if sizes is None:
        context = math.gcd(len(devices), frames)
        sizes = {"fsdp": len(devices) // context, "context": context}
    for name in sizes:
        if name not in sharding.AXES:
            known = ", ".join(sharding.AXES)
            raise InputError(
                f"--mesh: unknown axis {name!r}{nearest(name, sharding.AXES)}; the axes are {known}"
            )
    try:
        return sharding.make_mesh(**sizes, devices=devices)
    except ValueError as error:
        raise InputError(f"--mesh: {error}") from None
