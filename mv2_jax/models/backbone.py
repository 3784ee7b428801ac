"""What a backbone is, the network that denoises, and how its work lies on a mesh.

A backbone is called on latents `[R, B, T, H, W, C]`: R rows of guidance, B samples, T frames (of a
picture 1). Behind `denoise` each device of a mesh runs the network on its own samples and frames,
with all rows of guidance, which no axis of the mesh has to divide (see `mv2_jax.shards`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from mv2_jax import sharding, shards

Network = Callable[[Any, jax.Array, jax.Array, Any], jax.Array]
"""network(params, x [R, b, t, H, W, C], t [R, b], condition of leading axes [R, b]) -> like x."""


def denoise(
    network: Network,
    params: Any,
    x: jax.Array,
    t: jax.Array,
    condition: Any,
    *,
    shared: bool = True,
    rules: sharding.Rules = (),
) -> jax.Array:
    """The network's output for every row and sample; the same on any mesh within float error.

    Args:
        network: a function of one device's share, b of the samples and t of the frames. It may
            call several modules (a ControlNet, then the UNet).
        params: a tree whose paths match `rules` or `sharding.RULES`.
        x: `[R, B, T, H, W, C]` latents.
        t: `[R, B]` timesteps, float32.
        condition: a tree of arrays `[R, B, ...]`. What is told to each frame goes in with all the
            clip's frames, and the network takes its own by `shards.own`.
        shared: whether the network is made of layers that know of shards, as this package's are:
            they gather their parameters where they use them, and meet the other frames of a clip
            where they need them (`shards.frames` says how many there are). Any other network gets
            whole parameters and whole clips: samples alone are split then.
        rules: (pattern, axes) rows, asked before `sharding.RULES`.

    Returns:
        Like x. Under a mesh samples are split over data and fsdp, and the rest is whole: latents
        are small beside what the network makes of them.
    """

    def local(params: Any, x: jax.Array, t: jax.Array, condition: Any) -> jax.Array:
        return shards.joined(network(params, shards.own(x, 2), t, condition), 2)

    mesh = sharding.current_mesh()
    if mesh is None:
        return network(params, x, t, condition)
    split, layout = shards.lay_out(*x.shape[1:3], mesh)

    def specs(mesh: AbstractMesh) -> tuple[Any, Any]:
        spec = P(None, split)
        return (shards.params_specs(params, mesh, shared, rules), spec, spec, spec), spec

    layout = layout._replace(rules=tuple(rules)) if shared else shards.Layout()
    return shards.per_device(local, (params, x, t, condition), specs, layout)
