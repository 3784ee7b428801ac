"""Where training arrays lie: on one device, or over a mesh by the sharding table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mv2_jax import params as trees
from mv2_jax import sharding
from mv2_jax.errors import InputError
from mv2_jax.lookup import one_of
from mv2_jax.train.state import State
from mv2_jax.train.task import Batch, Params, Share


def host() -> jax.Device:
    """This machine's CPU as a device; where JAX_PLATFORMS leaves it out, the first accelerator."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def own_rows(sizes: Mapping[str, int], batch: int) -> np.ndarray:
    """Which rows of a batch this process's devices hold, over the mesh of these sizes."""
    if jax.process_count() == 1:
        return np.arange(batch)
    mesh = Placement(sizes).mesh
    layout = NamedSharding(mesh, PartitionSpec(sharding.fit(sharding.SAMPLES, batch, mesh)))
    held = [
        np.arange(batch)[part]
        for (part,) in layout.addressable_devices_indices_map((batch,)).values()
    ]
    return np.unique(np.concatenate(held))


class Placement:
    """Puts states, parameters and batches onto the devices.

    `sizes` maps a mesh axis (`data`, `fsdp`, `context`, `tensor`) to its size; where none is above
    1 there is one device and nothing is partitioned. The state follows `rules`, the task's own, and
    `mv2_jax.sharding.RULES`, optimiser moments like their parameters; batches are split over `data`
    and `fsdp`.

    Raises:
        InputError: an unknown axis, or sizes that do not multiply to the number of devices.
    """

    def __init__(self, sizes: Mapping[str, int], rules: sharding.Rules = ()) -> None:
        self.rules = rules
        for name in sizes:
            one_of(name, sharding.AXES, "axis", "mesh")
        sizes = {name: size for name, size in sizes.items() if size != 1}
        try:
            self.mesh = sharding.make_mesh(**sizes) if sizes else None
        except ValueError as error:
            raise InputError(f"mesh: {error}") from None

    def scope(self) -> Any:
        """The context that compiling and running belong in."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def jit(self, step: Callable[..., Any], state: State) -> Any:
        """`step` compiled so that the state, which it consumes, stays where it lies."""
        if self.mesh is None:
            return jax.jit(step, donate_argnums=0)
        return jax.jit(step, donate_argnums=0, out_shardings=(self._layout(state), None))

    def params(self, tree: Params) -> Params:
        if self.mesh is None:
            return jax.device_put(tree)
        return sharding.shard_params(tree, self.mesh, self.rules)

    def batch(self, batch: Batch) -> Batch:
        if self.mesh is None:
            return jax.device_put(dict(batch))
        if isinstance(batch, Share):
            return sharding.shard_rows(dict(batch), self.mesh, batch.rows)
        return sharding.shard_batch(batch, self.mesh)

    def _layout(self, state: State) -> State:
        """A sharding for every leaf of the state.

        What mirrors a parameter (its moments, its average) lies as the parameter does; what
        belongs to none (counts, Muon's coefficients) is on every device.
        """
        known = trees.flatten(state.params)
        whole = NamedSharding(self.mesh, PartitionSpec())

        def one(path: tuple, leaf: jax.Array) -> NamedSharding:
            parts = [str(getattr(p, "key", getattr(p, "name", p))) for p in path]
            tails = ("/".join(parts[i:]) for i in range(len(parts)))
            name = next((tail for tail in tails if tail in known), None)
            if name is None or leaf.shape != known[name].shape:
                return whole
            spec = sharding.spec_for(name, leaf.shape, self.mesh, self.rules)
            return NamedSharding(self.mesh, spec)

        return jax.tree_util.tree_map_with_path(one, state)
