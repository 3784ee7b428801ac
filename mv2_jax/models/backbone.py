"""What a backbone is, the network that a stage denoises with, and how its work lies on a mesh.

A stage's config names one (`config.StageConfig.unet`). A UNet's config stands for
`models.unet.UNetBackbone`; a config of one's own is its own backbone: a frozen dataclass with the
members of `Backbone`, named as `module:Class` in recipes and cascade folders. docs/extending.md
walks through one.

Behind `denoise` each device of a mesh runs the network on its own samples and frames of latents
`[R, B, T, H, W, C]`: all R rows of guidance, which no axis of the mesh has to divide (see
`mv2_jax.shards`), B samples, T frames (of a picture 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from mv2_jax import sharding, shards
from mv2_jax.config import UNetConfig
from mv2_jax.errors import InputError
from mv2_jax.lookup import lacks
from mv2_jax.models.unet import UNetBackbone
from mv2_jax.nn.transformer import Context
from mv2_jax.params import Tree

Network = Callable[..., Any]
"""network(params, x [R, b, t, H, W, C], t [R, b], conditioning [R, b, ...]) -> like x; with what is
kept from step to step as a fifth argument, (like x, what is kept)."""


@runtime_checkable
class Backbone(Protocol):
    """A denoising network."""

    @property
    def in_channels(self) -> int:
        """Of its latents."""
        ...

    @property
    def frames(self) -> int | None:
        """The longest clip that it knows (longer ones go in windows); None: any."""
        ...

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parameter trees that it reads, `init`'s among them."""
        ...

    @property
    def own(self) -> tuple[str, ...]:
        """The parts that each stage has for itself, stored as `part_stage` ("motion_i2v"); the
        others are shared by all stages that have one of that name."""
        ...

    @property
    def rules(self) -> sharding.Rules:
        """(pattern, axes) rows for parameters that `sharding.RULES` does not know."""
        ...

    @property
    def sharded(self) -> bool:
        """Whether its layers know of shards, as this package's do: see `denoise`. Else each device
        of a mesh has whole clips and parameters."""
        ...

    def init(self, key: jax.Array, x: jax.Array, t: jax.Array, context: Context) -> Tree:
        """{part: fresh tree}; x, t and context as in `apply`, of one sample."""
        ...

    def select(self, params: Tree) -> Tree:
        """Of all trees of a stage, what `apply` reads."""
        ...

    def apply(
        self,
        params: Tree,
        x: jax.Array,
        t: jax.Array,
        context: Context,
        *,
        dtype: Any = jnp.float32,
        remat: str | bool = False,
    ) -> jax.Array:
        """The output at noisy latents x [N, T, h, w, C] and timesteps t [N], shaped like x.

        N are the rows of guidance times the samples. `params` holds what `select` says, and more.
        `dtype` is of computation; `remat` (a word of `models.unet.REMAT`, or truth) has the
        backward pass compute again what it can, for memory.
        """
        ...


@runtime_checkable
class Keeping(Protocol):
    """A backbone that can run its outermost part alone, around features of an earlier step."""

    @property
    def branches(self) -> int:
        """How many cuts there are between the two parts, numbered from the outermost."""
        ...

    def features(self, branch: int, plane: tuple[int, int]) -> tuple[int, int, int]:
        """The shape (h, w, c) of what is kept of a frame, for latents of this plane."""
        ...

    def apply_kept(
        self,
        params: Tree,
        x: jax.Array,
        t: jax.Array,
        context: Context,
        kept: jax.Array | None,
        branch: int,
        *,
        dtype: Any = jnp.float32,
    ) -> tuple[jax.Array, jax.Array]:
        """`Backbone.apply`'s output, and features [N, T, h, w, c]: with None in `kept` of the whole
        network, which makes them anew; with an earlier step's of the outer part around them."""
        ...


def of(config: Any) -> Backbone:
    """The backbone that a stage's config names.

    Raises:
        InputError: a config that is none; the message says what it lacks.
    """
    if isinstance(config, UNetConfig):
        return UNetBackbone(config)
    if isinstance(config, type):
        raise InputError(f"{config.__name__} is a class; a backbone is {config.__name__}(...)")
    if not isinstance(config, Backbone):
        lack = lacks(config, Backbone)
        raise InputError(f"{type(config).__name__} is no backbone: it lacks {lack}")
    return config


def denoise(
    network: Network,
    params: Any,
    x: jax.Array,
    t: jax.Array,
    conditioning: Any,
    *kept: jax.Array,
    shared: bool = True,
    rules: sharding.Rules = (),
) -> Any:
    """The network's output for every row and sample; the same on any mesh within float error.

    Args:
        network: a function of one device's share, b of the samples and t of the frames. It may
            call several modules (a ControlNet, then the UNet).
        params: a tree whose paths match `rules` or `sharding.RULES`.
        x: `[R, B, T, H, W, C]` latents.
        t: `[R, B]` timesteps, float32.
        conditioning: a tree of arrays `[R, B, ...]`. What is told to each frame goes in with all
            the clip's frames, and the network takes its own by `shards.own`.
        kept: features `[R, B, T, ...]` of an earlier step, where the network takes them as well and
            returns (output, features). They stay with the devices that made them (`kept_frames`).
        shared: whether the network is made of layers that know of shards, as this package's are:
            they gather their parameters where they use them, and meet the other frames of a clip
            where they need them (`shards.frames` says how many there are). Any other network gets
            whole parameters and whole clips: samples alone are split then.
        rules: (pattern, axes) rows, asked before `sharding.RULES`.

    Returns:
        Like x (and the features). Under a mesh samples are split over data and fsdp, and the rest
        is whole: latents are small beside what the network makes of them.
    """

    def local(params: Any, x: jax.Array, t: jax.Array, conditioning: Any, *kept: Any) -> Any:
        made = network(params, shards.own(x, 2), t, conditioning, *kept)
        return (shards.joined(made[0], 2), made[1]) if kept else shards.joined(made, 2)

    mesh = sharding.current_mesh()
    if mesh is None:
        return network(params, x, t, conditioning, *kept)
    split, layout = shards.lay_out(x.shape[1], x.shape[2], mesh)
    layout = layout._replace(rules=tuple(rules)) if shared else shards.Layout()

    def specs(mesh: AbstractMesh) -> tuple[Any, Any]:
        spec, own = P(None, split), P(None, split, layout.over or None)
        given = (shards.params_specs(params, mesh, shared, rules), spec, spec, spec)
        return (*given, *(own for _ in kept)), (spec, own) if kept else spec

    return shards.per_device(local, (params, x, t, conditioning, *kept), specs, layout)


def kept_frames(samples: int, frames: int) -> int:
    """How many frames features have for clips of so many: on a mesh that splits clips unevenly,
    those that fill them up as well."""
    mesh = sharding.current_mesh()
    if mesh is None:
        return frames
    over = shards.lay_out(samples, frames, mesh)[1].over
    parts = math.prod(mesh.shape[name] for name in over)
    return -(-frames // parts) * parts
