"""Machines by name: what their chips can do, and how XLA's compilers know them.

Figures are the makers': of TPUs from Google Cloud's page of each version (such as
docs.cloud.google.com/tpu/docs/v5e), of GPUs from NVIDIA's datasheets, dense and not sparse. A
device is what JAX counts as one: of v4 and tpu7x that is half a chip here, as in the compiler's
topologies.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mv2_jax.errors import InputError
from mv2_jax.lookup import nearest

EXAMPLES = "a TPU slice (v5e:2x4, v6e:4x4, v5p:2x2x1, v4:2x2x1, tpu7x:2x2x1) or GPUs (h100:8, l4)"
GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """A device.

    tflops: dense bfloat16 with fp32 sums. bandwidth: of its memory, GB/s. memory: bytes that a
    program may use. link: GB/s that it receives from the others at most, all links together.
    tile: the side of its matrix units, to which products are padded. clock: GHz of what the
    compiler counts cycles of; None where that is not published. per_chip: devices to a chip.
    """

    kind: str
    platform: str
    tflops: float
    bandwidth: float
    memory: int
    link: float
    tile: int
    source: str
    clock: float | None = None
    per_chip: int = 1
    dimensions: int = 0


_GOOGLE = "docs.cloud.google.com/tpu/docs/"


def _tpu(kind: str, page: str, numbers: Sequence[float], dimensions: int, **more: Any) -> Chip:
    tflops, bandwidth, memory, link, tile = numbers
    source = _GOOGLE + page
    return Chip(
        kind, "tpu", tflops, bandwidth, int(memory * GIB), link, int(tile), source,
        dimensions=dimensions, **more,
    )  # fmt: skip


# Links: half of the published two-way bandwidth. Memory of v5e is what its compiler allows.
TPUS = {
    "v4": _tpu("TPU v4", "v4", (137.5, 614, 16, 75, 128), 3, clock=1.05, per_chip=2),
    "v5e": _tpu("TPU v5 lite", "v5e", (197, 819, 15.75, 200, 128), 2, clock=1.5),
    "v5p": _tpu("TPU v5", "v5p", (459, 2765, 95, 600, 128), 3, clock=1.75),
    "v6e": _tpu("TPU v6 lite", "v6e", (918, 1638, 31.25, 400, 256), 2, clock=1.75),
    "tpu7x": _tpu("TPU7x", "tpu7x", (1153.5, 3690, 96, 300, 256), 3, per_chip=2),
}


@dataclass(frozen=True)
class _Gpu:
    """What XLA asks of a GPU beside the chip's figures."""

    capability: tuple[int, int]
    cores: int
    clock: float
    l2: int
    shared: int
    threads: int


def _gpu(name: str, tflops: float, bandwidth: float, memory: float, link: float) -> Chip:
    source = "NVIDIA's datasheet"
    return Chip(name, "gpu", tflops, bandwidth, int(memory), link, 8, source)


GPUS = {
    "a100-40": _gpu("NVIDIA A100-SXM4-40GB", 311.8, 1555, 42.4e9, 300),
    "a100-80": _gpu("NVIDIA A100-SXM4-80GB", 311.8, 2039, 84.9e9, 300),
    "h100": _gpu("NVIDIA H100 80GB HBM3", 989.4, 3352, 84942979072, 450),
    "h200": _gpu("NVIDIA H200", 989.4, 4800, 150e9, 450),
    "l4": _gpu("NVIDIA L4", 121.0, 300, 23.6e9, 32),
    "rtx4090": _gpu("NVIDIA GeForce RTX 4090", 165.2, 1008, 25.3e9, 32),
}
_DESCRIBED = {
    "a100-40": _Gpu((8, 0), 108, 1.41, 40 * 2**20, 164 * 1024, 2048),
    "a100-80": _Gpu((8, 0), 108, 1.41, 40 * 2**20, 164 * 1024, 2048),
    "h100": _Gpu((9, 0), 132, 1.98, 50 * 2**20, 228 * 1024, 2048),
    "h200": _Gpu((9, 0), 132, 1.98, 50 * 2**20, 228 * 1024, 2048),
    "l4": _Gpu((8, 9), 58, 2.04, 48 * 2**20, 100 * 1024, 1536),
    "rtx4090": _Gpu((8, 9), 128, 2.52, 72 * 2**20, 100 * 1024, 1536),
}
KNOWN = {**TPUS, **GPUS}

# Off a TPU machine libtpu would ask the network what machine this is, wait, and complain; and a
# second process that plans would be refused its lock. Which type is named does not matter.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Machine:
    """So many devices of a kind, by the name that asked for them."""

    name: str
    chip: Chip
    count: int

    @property
    def chips(self) -> int:
        return self.count // self.chip.per_chip


def machine(name: str) -> Machine:
    """The machine of a name; loads nothing.

    Args:
        name: a TPU slice, "v5e:2x4", or a number of GPUs, "h100:8" ("h100" is one).

    Raises:
        InputError: it is not one.
    """
    kind, _, shape = name.partition(":")
    if kind not in KNOWN:
        raise InputError(f"--on: unknown machine {name!r}{nearest(kind, KNOWN)}; takes {EXAMPLES}")
    chip = KNOWN[kind]
    if kind in GPUS:
        if shape and not re.fullmatch("[1-9][0-9]{0,4}", shape):
            raise InputError(f"--on: {kind} takes a number of GPUs, as in {kind}:8, not {shape!r}")
        return Machine(name, chip, int(shape or 1))
    sides = shape.split("x")
    if len(sides) != chip.dimensions or not all(re.fullmatch("[1-9][0-9]{0,2}", s) for s in sides):
        example = f"{kind}:2x4" if chip.dimensions == 2 else f"{kind}:2x2x1"
        raise InputError(f"--on: {kind} takes the chips along each side, as in {example}: {name!r}")
    return Machine(name, chip, math.prod(map(int, sides)) * chip.per_chip)


def lacking(name: str) -> str | None:
    """The extra that installs a machine's compiler, where it is not installed."""
    chip = machine(name).chip
    module, extra = ("jax_cuda12_plugin", "cuda") if chip.platform == "gpu" else ("libtpu", "tpu")
    return extra if importlib.util.find_spec(module) is None else None


def devices(name: str) -> Sequence[Any]:
    """The devices of a machine, for a mesh to compile for; none of them has to exist.

    Raises:
        InputError: an unknown name, a slice that there is not, or the compiler is not installed.
    """
    here, extra = machine(name), lacking(name)
    if extra:
        raise InputError(
            f"--on {name}: its compiler is not installed; pip install 'mv2-jax[{extra}]'"
        )
    from jax.experimental import topologies

    if here.chip.platform == "gpu":
        return topologies.get_topology_desc(
            "", platform="cuda", target_config=_target(name), topology=f"1x{here.count}x1"
        ).devices
    for variable, value in _ALONE.items():
        os.environ.setdefault(variable, value)
    try:
        return topologies.get_topology_desc(name, platform="tpu").devices
    except Exception as error:
        why = (str(error).splitlines() or [""])[0]
        raise InputError(f"--on: no such TPU slice {name!r}; takes {EXAMPLES} ({why})") from None


def _target(name: str) -> str:
    """A GPU as XLA's compiler wants it described."""
    kind = name.partition(":")[0]
    chip, gpu = GPUS[kind], _DESCRIBED[kind]
    major, minor = gpu.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared}
  threads_per_core_limit: {gpu.threads}
  core_count: {gpu.cores}
  fpus_per_core: {64 if gpu.capability == (8, 0) else 128}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.bandwidth * 1e9)}
  l2_cache_size: {gpu.l2}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {chip.memory}
  shared_memory_per_block_optin: {gpu.shared - 1024}
  cuda_compute_capability {{ major: {major} {f"minor: {minor}" if minor else ""} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{chip.kind}"
"""
