"""Where training arrays lie: on one device, or over a mesh by the sharding table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

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


HOST = "pinned_host"  # the kind of memory, as JAX calls it
# What may lie there between steps, and the fields of a state it is.
OFFLOADS = {"optimizer": ("opt",), "averages": ("ema", "others"), "frozen": ()}


def near(tree: Any) -> Any:
    """The tree with what lies in host memory on its devices."""

    def one(leaf: Any) -> Any:
        home = getattr(leaf, "sharding", None)
        return (
            leaf
            if home is None or home.memory_kind != HOST
            else jax.device_put(leaf, home.with_memory_kind("device"))
        )

    return jax.tree.map(one, tree)


class Placement:
    """Puts states, parameters and batches onto the devices.

    `sizes` maps a mesh axis (`data`, `fsdp`, `context`, `tensor`) to its size; where none is above
    1 there is one device and nothing is partitioned. The state follows `rules`, the task's own, and
    `mv2_jax.sharding.RULES`, optimiser moments like their parameters; batches are split over `data`
    and `fsdp`. What `offload` names (of `OFFLOADS`) lies in host memory and comes to the devices
    within a step.

    Raises:
        InputError: an unknown axis, sizes that do not multiply to the number of devices, or a
            device without host memory of its own.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        rules: sharding.Rules = (),
        offload: Collection[str] = (),
    ) -> None:
        self.rules, self.offload = rules, offload
        for name in offload:
            one_of(name, OFFLOADS, "offload")
        device = jax.local_devices()[0]
        kinds = [memory.kind for memory in device.addressable_memories()]
        if offload and HOST not in kinds:
            raise InputError(f"offload: {device.device_kind} has no {HOST} memory; leave it out")
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

    def step(self, step: Callable[..., Any], state: State) -> Any:
        """`jit` of a training step, which takes state and frozen trees from where they lie."""
        if not self.offload:
            return self.jit(step, state)

        def fetched(state: State, frozen: Params, *rest: Any) -> Any:
            here = {name: _fetched(getattr(state, name)) for name in self._away()}
            frozen = _fetched(frozen) if "frozen" in self.offload else frozen
            return step(state._replace(**here), frozen, *rest)

        return jax.jit(fetched, donate_argnums=0, out_shardings=(self._homes(state), None))

    def state(self, state: State) -> State:
        """The state, with what is offloaded in host memory."""
        if not self._away():
            return state
        homes = self._homes(state)
        away = {n: jax.device_put(getattr(state, n), getattr(homes, n)) for n in self._away()}
        return state._replace(**away)

    def frozen(self, tree: Params) -> Params:
        """Trees that are not trained, on the devices or in host memory."""
        placed = self.params(tree)
        return _at(placed, HOST) if "frozen" in self.offload else placed

    def _away(self) -> tuple[str, ...]:
        """Fields of a state that are offloaded."""
        return tuple(field for name in self.offload for field in OFFLOADS[name])

    def _homes(self, state: State) -> State:
        """Where each leaf of the state lies between steps."""
        if self.mesh is None:
            homes = jax.tree.map(lambda _: SingleDeviceSharding(jax.local_devices()[0]), state)
        else:
            homes = self._layout(state)
        away = {
            name: jax.tree.map(lambda home: home.with_memory_kind(HOST), getattr(homes, name))
            for name in self._away()
        }
        return homes._replace(**away)

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


def _fetched(tree: Any) -> Any:
    """Within a program: the tree on the devices."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device), tree)


def _at(tree: Any, kind: str) -> Any:
    """The tree in another kind of memory, laid out as it is."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind(kind)), tree)
