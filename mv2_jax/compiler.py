"""What XLA is told when a program is compiled: one rule for everything that a cascade runs."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxlib.version import __version__ as installed

from mv2_jax import sharding

Options = dict[str, str]

WIDE = 640
"""Channels into and out of its widest convolution from which a program takes Eigen's on a CPU."""

# jaxlib 0.10.2 gives a CPU's convolutions to YNNPACK. Up to 256 channels those win or draw; from
# 320 on Eigen's do, the more the smaller the plane: 2.1 times as fast at 1280 channels on 8x8, 1.4
# on 16x16, 1.1 at 640 on 32x32 and 320 on 64x64 (CPU time). A public UNet has them all; the VAE,
# of 512 channels on large planes, is 1 to 3% slower with Eigen's.
# The option leaves reductions with YNNPACK. A jaxlib that was not measured is left as it is: it may
# not know the option, and then compiles nothing.
_EIGEN = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
_MEASURED = ("0.10.2",)


def options(args: Any, platform: str | None = None, version: str | None = None) -> Options:
    """The compiler options for a program with these arguments; empty where XLA's own are best.

    Args:
        args: its arguments, trees of arrays or of their shapes, parameters among them.
        platform: "cpu", "gpu" or "tpu"; that of the mesh, or of the default backend, where None.
        version: jaxlib's; the installed one's where None.
    """
    cpu = (platform or sharding.platform()) == "cpu"
    if not cpu or (version or installed) not in _MEASURED:
        return {}
    return dict(_EIGEN) if width(args) >= WIDE else {}


def width(args: Any) -> int:
    """The channels of the widest convolution in these trees; 0 where there is none.

    A kernel is [height, width, in, out]; the lesser of its channels counts, so that neither a
    network's first and last layer nor a patch embedding is a wide one. 1x1 kernels are plain matrix
    products.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(args)]
    kernels = [shape for shape in shapes if len(shape) == 4 and shape[0] == shape[1] > 1]
    return max((min(shape[2:]) for shape in kernels), default=0)
