"""Where training arrays lie: on one device, or over a mesh by the sharding table."""

from __future__ import annotations

from typing import Any

import jax

from mv2_jax.train.state import State
from mv2_jax.train.task import Batch, Params


class Placement:
    """Puts states, parameters and batches onto the devices.

    `mesh` is a mapping of axis name to size; empty is one device, where nothing moves.
    """

    def __init__(self, mesh: Any) -> None:
        self.mesh = dict(mesh)

    def state(self, state: State) -> State:
        return state

    def params(self, tree: Params) -> Params:
        return jax.device_put(tree)

    def batch(self, batch: Batch) -> Batch:
        return jax.device_put(batch)
