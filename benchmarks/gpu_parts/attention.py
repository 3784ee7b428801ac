"""Part c: attention at the cascade's shapes by every implementation there is, gradients too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpu_parts import jobs
from gpu_parts.bench import Bench, Part
from mv2_jax.nn.attention import attend

BLOCK = 128  # tokens of a block of JAX's Pallas kernel


@dataclass(frozen=True)
class Shape:
    """B rows of Lq queries and Lk keys, N heads of width D; `grad`: gradients are timed too."""

    where: str
    rows: int
    queries: int
    keys: int
    heads: int
    width: int
    grad: bool = True

    @property
    def flops(self) -> float:
        """Of the two matrix products."""
        return 4.0 * self.rows * self.heads * self.queries * self.keys * self.width

    def __str__(self) -> str:
        return f"{self.rows} x {self.queries} x {self.keys}, {self.heads} x {self.width}"


# Two guidance rows of 16 or 32 frames; temporal attention has as many rows as positions.
SHAPES = (
    Shape("sd15 64x64", 32, 4096, 4096, 8, 40),
    Shape("I2V 75x75", 64, 5625, 5625, 8, 40),
    Shape("I2V 38x38", 64, 1444, 1444, 8, 80),
    Shape("I2V 19x19", 64, 361, 361, 8, 160),
    Shape("I2V 75x75, text", 64, 5625, 77, 8, 40),
    Shape("I2V 75x75, over 32 frames", 11250, 32, 32, 8, 40),
    Shape("SDXL 64x64", 2, 4096, 4096, 10, 64),
    Shape("V2V 131x131", 16, 17161, 17161, 8, 40, grad=False),
    Shape("VAE 131x131", 1, 17161, 17161, 1, 512, grad=False),
)
SMALL = (
    Shape("odd", 2, 81, 81, 2, 8),
    Shape("odd, text", 2, 81, 77, 2, 8),
    Shape("frames", 81, 3, 3, 2, 8),
)
# Rows of these alone are compared with the formula in fp32: odd tokens, every head width.
CHECKED = (
    Shape("odd, text", 2, 333, 77, 8, 80),
    Shape("odd", 2, 625, 625, 8, 40),
    Shape("odd", 2, 361, 361, 8, 160),
)
_SCORES = 5 * 2**30  # bytes of scores up to which the plain form is tried


def ways(shape: Shape, backend: str) -> dict[str, Callable[..., jax.Array]]:
    """The implementations that take a shape, by name."""
    names = ["chunked"]
    if 4 * shape.rows * shape.heads * shape.queries * shape.keys <= _SCORES:
        names.append("xla")
    if backend == "gpu" and shape.width <= 256:
        names.append("cudnn")
    found = {name: _attend(name) for name in names}
    if backend == "gpu" and shape.queries == shape.keys and shape.width <= 128:
        found["pallas-triton"] = triton
    return found


def _attend(impl: str) -> Callable[..., jax.Array]:
    return lambda q, k, v: attend(q, k, v, impl=impl)


def triton(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """JAX's Pallas kernel for GPUs, which is no part of `attend`; padded and masked by segment."""
    from jax.experimental.pallas.ops.gpu import attention as kernel

    length = q.shape[1]
    pad = -length % BLOCK
    q, k, v = (jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))) for x in (q, k, v))
    segments = (jnp.arange(length + pad) < length).astype(jnp.int32)
    segments = jnp.broadcast_to(segments, (q.shape[0], length + pad)) if pad else None
    return kernel.mha(q, k, v, segments, sm_scale=q.shape[-1] ** -0.5)[:, :length]


@dataclass
class Timed:
    """A shape by one implementation; `error` says why there is no program."""

    shape: Shape
    way: str
    kind: str
    job: jobs.Job | None
    error: str = ""


def plan(bench: Bench) -> tuple[list[Timed], list[Timed]]:
    """Programs to time, and programs to compare: fp32's first, for each shape."""
    backend = jax.default_backend()
    timed, checked = [], []
    for shape in SMALL if bench.small else CHECKED:
        checked.append(_exact(bench, shape))
        found = ways(shape, backend)
        checked += [_timed(bench, shape, way, found[way], "values") for way in found]
    for shape in SMALL if bench.small else SHAPES:
        for way, function in ways(shape, backend).items():
            timed.append(_timed(bench, shape, way, function, "forwards"))
            if shape.grad:
                timed.append(_timed(bench, shape, way, function, "with gradients"))
    return timed, checked


def _timed(bench: Bench, shape: Shape, way: str, function: Any, kind: str) -> Timed:
    name = f"attention, {shape} by {way}, {kind}"
    dtype = jnp.float32 if way == "exact" else bench.dtype
    jitted = jax.jit(function if kind == "forwards" else _weighed(function))
    try:
        job = bench.compiler.job(name, jitted, _abstract(shape, dtype, kind))
    except Exception as error:  # a kernel that refuses the shape
        return Timed(shape, way, kind, None, f"{type(error).__name__}: {error}")
    return Timed(shape, way, kind, job)


def _exact(bench: Bench, shape: Shape) -> Timed:
    def plain(q: Any, k: Any, v: Any) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return attend(q, k, v, impl="xla")

    return _timed(bench, shape, "exact", plain, "values")


def _weighed(function: Any) -> Any:
    """The output, and the gradients of a random weighing of it by q, k and v."""

    def whole(q: Any, k: Any, v: Any, weights: Any) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(function, q, k, v)
        return out, *pull(weights)

    return whole


def _sizes(shape: Shape, kind: str) -> list[tuple[int, ...]]:
    tokens = [shape.queries, shape.keys, shape.keys, shape.queries]
    count = 3 if kind == "forwards" else 4
    return [(shape.rows, length, shape.heads, shape.width) for length in tokens[:count]]


def _abstract(shape: Shape, dtype: Any, kind: str) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(size, dtype) for size in _sizes(shape, kind))


def _arrays(shape: Shape, dtype: Any, kind: str) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)

    def noise(size: tuple[int, ...]) -> jax.Array:
        some = rng.standard_normal(min(2**20, int(np.prod(size))), np.float32)
        return jax.device_put(np.resize(some, size).astype(jnp.bfloat16).astype(dtype))

    return tuple(noise(size) for size in _sizes(shape, kind))


def run(bench: Bench, planned: tuple[list[Timed], list[Timed]]) -> None:
    timed, checked = planned
    bench.results.part("c values", "errors against the formula in fp32, relative in norm")
    exact: list[np.ndarray] = []
    for one in checked:
        dtype = jnp.float32 if one.way == "exact" else bench.dtype
        args = _arrays(one.shape, dtype, one.kind)
        found = _try(bench, one, lambda program, args=args: program(*args))
        if found is None:
            continue
        values = [np.asarray(x, np.float32) for x in found]
        if one.way == "exact":
            exact = values
            continue
        errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(values, exact)]
        names = ("error", "of dq", "of dk", "of dv")
        cells = {name: float(error) for name, error in zip(names, errors)}
        bench.results.row("c values", shape=str(one.shape), way=one.way, **cells)
    for one in timed:
        args = _arrays(one.shape, bench.dtype, one.kind)
        took = _try(bench, one, lambda p, args=args: jobs.seconds(p, args, bench.part_ends, 0.3))
        if took is None:
            continue
        flops = one.shape.flops * (1 if one.kind == "forwards" else 3)
        cells = {"run": one.kind, "ms": 1e3 * took, "MFU %": bench.mfu(flops, took)}
        bench.results.row(
            "c", shape=str(one.shape), where=one.shape.where, way=one.way, **cells,
            GiB=one.job.bytes / 2**30,
        )  # fmt: skip


def _try(bench: Bench, one: Timed, use: Callable[[Any], Any]) -> Any:
    """What `use` makes of the program; None, and a remark, where there is none, or it fails.

    Raises:
        Late: the part's time is up.
    """
    name = f"{one.shape} by {one.way}, {one.kind}"
    if bench.left <= 0:
        raise jobs.Late(f"attention from {name} on was not reached")
    try:
        if one.job is None:
            raise RuntimeError(one.error)
        return jax.block_until_ready(use(one.job.program(bench.part_ends)))
    except jobs.Late as late:
        bench.results.remark("c", str(late))
    except Exception as error:
        bench.results.remark("c", f"{name}: " + " ".join(str(error).split())[:200])
    return None


PART = Part("c", "attention at the cascade's shapes", 45, plan, run)
