"""Low-rank adaptation (LoRA, arXiv 2106.09685) of any parameter tree, as plain functions.

A kernel W [..., out] is read as a matrix [in, out] (a convolution's window and inputs together) and
becomes W + scale * down @ up with down [in, rank] and up [rank, out]. Networks know nothing of it:
`merge` gives a tree like the one they take, and gradients flow through it to the two factors.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from mv2_jax import params as trees
from mv2_jax.diffusion import keys as named

Params = dict[str, Any]


def init(key: jax.Array, tree: Params, rank: int, match: str = "") -> Params:
    """Fresh factors for the kernels of `tree` whose path `match` (a regular expression) finds.

    `up` starts at zero, so that at first the merged tree is the tree itself.

    Returns:
        A tree with {"down": [in, rank], "up": [rank, out]} fp32 in the place of each such kernel.

    Raises:
        ValueError: a rank below 1, or no kernel is found.
    """
    if rank < 1:
        raise ValueError(f"the rank of a LoRA is 1 or more, not {rank}")
    factors: dict[str, jax.Array] = {}
    for path, leaf in trees.flatten(tree).items():
        if path.endswith("kernel") and leaf.ndim >= 2 and re.search(match, path):
            inputs = math.prod(leaf.shape[:-1])
            down = jax.random.normal(named.fold(key, path), (inputs, rank)) / math.sqrt(inputs)
            factors[f"{path}/down"] = down
            factors[f"{path}/up"] = jnp.zeros((rank, leaf.shape[-1]))
    if not factors:
        raise ValueError(f"no kernel's path matches {match!r}")
    return trees.unflatten(factors)


def merge(tree: Params, factors: Params, scale: float | jax.Array = 1.0) -> Params:
    """`tree` with the products of `factors` (from `init`) added to its kernels.

    Raises:
        ValueError: factors of a kernel that the tree does not have.
    """
    leaves, flat = dict(trees.flatten(tree)), trees.flatten(factors)
    for path in sorted({name.rpartition("/")[0] for name in flat}):
        if path not in leaves:
            raise ValueError(f"the tree has no kernel {path!r} for these LoRA factors")
        kernel = jnp.asarray(leaves[path])
        change = flat[f"{path}/down"] @ flat[f"{path}/up"]
        leaves[path] = kernel + (scale * change.reshape(kernel.shape)).astype(kernel.dtype)
    return trees.unflatten(leaves)
