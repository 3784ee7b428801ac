"""Devices that are not here, described to XLA's compilers by name."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

from mv2_jax.errors import InputError
from mv2_jax.lookup import nearest

TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
EXAMPLES = "a TPU slice (v5e:2x4, v6e:4x4, v5p:4x4x4, v4:2x2x1, tpu7x:2x2x1) or GPUs (h100:8)"

# What XLA asks of a GPU: NVIDIA's published figures of the H100 SXM.
GPUS = {
    "h100": """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
""",
}


def check(name: str) -> None:
    """That the machine is known and its compiler installed; loads nothing. See `devices`.

    Raises:
        InputError: as `devices`.
    """
    kind, _, shape = name.partition(":")
    known = (*TPUS, *GPUS)
    if kind not in known:
        raise InputError(f"--on: unknown machine {name!r}{nearest(kind, known)}; takes {EXAMPLES}")
    if kind in GPUS and shape and not re.fullmatch("[1-9][0-9]*", shape):
        raise InputError(f"--on: {kind} takes a number of GPUs, as in {kind}:8, not {shape!r}")
    module, extra = ("jax_cuda12_plugin", "cuda") if kind in GPUS else ("libtpu", "tpu")
    if importlib.util.find_spec(module) is None:
        raise InputError(
            f"--on {name}: its compiler is not installed; pip install 'mv2-jax[{extra}]'"
        )


def devices(name: str) -> Sequence[Any]:
    """The devices of a machine by name, for a mesh to compile for; none of them has to exist.

    Args:
        name: a TPU slice, "v5e:2x4", or a number of GPUs, "h100:8" ("h100" is one).

    Raises:
        InputError: an unknown name, or the compiler for it is not installed.
    """
    check(name)
    from jax.experimental import topologies

    kind, _, shape = name.partition(":")
    if kind in GPUS:
        return topologies.get_topology_desc(
            "", platform="cuda", target_config=GPUS[kind], topology=f"1x{shape or 1}x1"
        ).devices
    # Off a TPU machine the library would ask the network what machine this is, and wait.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        return topologies.get_topology_desc(name, platform="tpu").devices
    except Exception as error:
        why = (str(error).splitlines() or [""])[0]
        raise InputError(f"--on: no such TPU slice {name!r}; takes {EXAMPLES} ({why})") from None
