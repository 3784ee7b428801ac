"""Cases for `test_meshes`: a network, a mesh and sizes, on the mesh beside one device.

`python tests/meshes.py DEVICES NUMBER...` runs the cases of these numbers on meshes of so many
emulated devices, and prints each difference.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from typing import Any

import jax
import mesh_parts as parts
import mesh_stages as of_stages
import numpy as np
from mesh_case import Case, Made
from quick import quick

from mv2_jax import sharding

NETWORK = of_stages.of_network
MADE = {
    "i2v": NETWORK,
    "vae": parts.of_vae,
    "t2i": NETWORK,
    "encoders": parts.of_encoders,
    "sparse": NETWORK,
    "t2i-chain": functools.partial(of_stages.of_chain, "t2i"),
    "clip": NETWORK,
    "i2v-chain": functools.partial(of_stages.of_chain, "i2v"),
    "ema": parts.of_interpolator,
    "vae-loss": parts.of_vae_loss,
    "edsc": parts.of_interpolator,
    "v2v-chain": functools.partial(of_stages.of_chain, "v2v"),
    "vfi": parts.of_interpolator,
    "t2i-loss": functools.partial(of_stages.of_loss, "t2i"),
    "gan": parts.of_interpolator,
    "i2v-loss": functools.partial(of_stages.of_loss, "i2v"),
    "sdxl-chain": functools.partial(of_stages.of_chain, "sdxl"),
    "gan-loss": parts.of_gan_loss,
    "v2v-loss": functools.partial(of_stages.of_loss, "v2v"),
    "mean": parts.of_interpolator,
    "sdxl-loss": functools.partial(of_stages.of_loss, "sdxl"),
    "dpo-loss": of_stages.of_dpo_loss,
    "cached-chain": of_stages.of_cached_chain,
}
# DPO's gradients are what is left of two nearly equal ones: it has a bound of its own. Kept
# features have cases of their own, too.
KINDS = tuple(kind for kind in MADE if kind not in ("dpo-loss", "cached-chain"))
DEFAULT = KINDS[:18]  # of the default cases; the others are larger relatives of these
STILL = ("t2i", "t2i-chain", "t2i-loss", "sdxl-chain", "sdxl-loss")  # of one frame
MOVING = ("vfi", "ema", "edsc", "gan", "mean", "clip")  # of one or two there is nothing to test
WHOLE = ("vfi", "ema", "edsc", "gan", "mean")  # their parameters are whole everywhere


def factorings(devices: int) -> list[tuple[int, ...]]:
    """Every mesh of so many devices."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    return [s for s in itertools.product(divisors, repeat=4) if math.prod(s) == devices]


def case(number: int, devices: int = 8) -> Case:
    """The kinds in turn, the rest drawn. Every tenth mesh of eight devices has six of them."""
    rng = np.random.default_rng([number, devices])
    meshes = factorings(6 if devices == 8 and number % 10 == 9 else devices)
    # A stride that meets all meshes before any comes again.
    sizes = meshes[(7 * number + 3) % len(meshes)]
    kinds = DEFAULT if number < 24 else KINDS
    kind = kinds[number % len(kinds)]
    frames = int(rng.choice([1, 2, 3, 5, 7, 8]))
    if kind in STILL:
        frames = 1
    if kind in MOVING:
        frames = max(3, frames)
    if kind == "edsc":  # the slowest on a CPU
        frames = 3
    return Case(
        kind,
        sizes,
        int(rng.integers(1, 4)),
        frames,
        tuple(int(n) for n in rng.choice([3, 4, 5], 2)),
        int(rng.integers(1, 4)),
        deep=number >= 24 and bool(rng.integers(2)),
    )


def difference(case: Case) -> float:
    """The largest difference of any result, as a share of its largest value.

    Or of a thousandth of the largest of all: some gradients are nothing but rounding (a key's bias
    moves no softmax).
    """
    made: Made = MADE[case.kind](case)
    run, params, args = made
    want = jax.device_get(quick(run)(params, *args))
    devices = jax.devices()[: math.prod(case.sizes)]
    mesh = sharding.make_mesh(*case.sizes, devices=devices)
    with jax.set_mesh(mesh):
        if case.kind not in WHOLE:
            params = sharding.shard_params(params, mesh)
        if case.kind.endswith("-loss"):  # as training lays out batches
            args = sharding.shard_batch(args, mesh)
        got = jax.device_get(quick(run)(params, *args))

    floor = 1e-3 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
    assert 0 < floor < np.inf, f"{case}: one device's largest result is {1e3 * floor}"

    def far(a: Any, b: Any) -> float:
        return float(np.abs(a - b).max() / max(np.abs(b).max(), floor))

    return float(np.max(jax.tree.leaves(jax.tree.map(far, got, want))))  # a NaN stays one


if __name__ == "__main__":
    count, *numbers = map(int, sys.argv[1:])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    for number in numbers:
        each = case(number, count)
        print(f"{number} {each}: {difference(each):.1e}", flush=True)
