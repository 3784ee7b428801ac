"""The network of `mv2 interpolate`, from the encoder's planes to the encoder's planes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mv2_jax import params as trees
from mv2_jax import sharding, shards
from mv2_jax.errors import InputError
from mv2_jax.infer import cache, interpolators
from mv2_jax.infer import interpolate_pictures as pictures
from mv2_jax.infer.interpolate_layout import Layout
from mv2_jax.infer.interpolate_pictures import Planes
from mv2_jax.stages import interpolators as networks
from mv2_jax.stages import vfi_table

# New frames of this many pixels and more are made one by one: on CPU a frame of 640 x 360 keeps
# two cores busy by itself, and each costs up to 600 bytes a pixel while it is made.
ALONE = 2**17
# Of networks that share work between the times of a gap, so many times a call; each number of them
# is a program of its own.
AT_ONCE = 8


def filler(
    name: str, views: int, layout: Layout, scale: Fraction = Fraction(1), mesh: Mesh | None = None
) -> Callable[[Planes, Planes, Sequence[float]], Sequence[Planes]]:
    """A function that makes the pictures at some times in (0, 1) between two.

    Args:
        name: of the interpolator, other than "none" (see `infer.interpolators`).
        views: how often each picture is made, see `stages.interpolators.between`.
        layout: of the pictures that it will get.
        scale: of the plane that motion is looked for on, 1/8 to 1; see `coarser`.
        mesh: over whose devices pictures are made, one on each; what comes back is then under way
            until it is looked at.

    Raises:
        InputError: the file `name` is no good; and the function, for a time the network cannot do.
    """
    cache.enable()
    stored, cfg = interpolators.load(name)
    cfg = coarser(cfg, scale, name)
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    tree = trees.cast(stored, dtype)
    static = {"cfg": cfg, "layout": layout, "views": views, "dtype": dtype}
    middle_alone = not vfi_table.any_time(cfg)
    if mesh is None:
        make = _one_by_one(jax.device_put(tree), static)
    else:
        make = Spread(sharding.lay_out(tree, mesh, everywhere=True), static, mesh)

    def fill(first: Planes, second: Planes, parts: Sequence[float]) -> Sequence[Planes]:
        if middle_alone and any(part != 0.5 for part in parts):
            raise InputError(f"{name} knows the middle between two frames alone; use --times 2")
        return make(first, second, parts)

    return fill


def _one_by_one(params: Any, static: dict[str, Any]) -> Callable[..., list[Planes]]:
    """Makes pictures on one device, a few times of a gap at once."""
    layout = static["layout"]
    together = 1 if layout.height * layout.width >= ALONE else 2
    if vfi_table.shares(static["cfg"]):
        together = AT_ONCE

    def make(first: Planes, second: Planes, parts: Sequence[float]) -> list[Planes]:
        made: list[Planes] = []
        for start in range(0, len(parts), together):
            wanted = list(parts[start : start + together])
            count = len(wanted)
            wanted += wanted[-1:] * (together - count if start else 0)
            new = _between(params, first, second, np.float32(wanted)[None], **static)
            new = [np.asarray(plane) for plane in new]
            made += [tuple(plane[k] for plane in new) for k in range(count)]
        return made

    return make


class Spread:
    """Makes pictures on all devices of a mesh, one on each, of whatever gaps they are.

    Work waits until there is some for every device, or until somebody looks.
    """

    def __init__(self, params: Any, static: dict[str, Any], mesh: Mesh) -> None:
        self._params, self._static, self._mesh = params, static, mesh
        self._waiting: list[_Picture] = []

    def __call__(self, first: Planes, second: Planes, parts: Sequence[float]) -> Sequence[Planes]:
        made = [_Picture(self, first, second, part) for part in parts]
        for picture in made:
            self._waiting.append(picture)
            if len(self._waiting) == self._mesh.size:
                self.go()
        return _Looked(made)

    def go(self) -> None:
        """Begins what waits; devices that are left over repeat the last."""
        work, count = self._waiting, self._mesh.size
        self._waiting = []
        filled = [*work, *work[-1:] * (count - len(work))]

        def stacked(planes: Sequence[Planes]) -> tuple[jax.Array, ...]:
            return sharding.shard_frames(tuple(np.stack(p) for p in zip(*planes)), self._mesh)

        pairs = (stacked([p.first for p in filled]), stacked([p.second for p in filled]))
        times = sharding.shard_frames(np.float32([[p.part] for p in filled]), self._mesh)
        with jax.set_mesh(self._mesh):
            made = _Call(_between_pairs(self._params, *pairs, times, **self._static))
        for k, picture in enumerate(work):
            picture.begun = (made, k)


class _Call:
    """Planes [P, 1, rows, columns] of one call, under way."""

    def __init__(self, planes: tuple[jax.Array, ...]) -> None:
        self._planes: Any = planes

    def row(self, k: int) -> Planes:
        """The planes of one pair; the first asked for waits for all."""
        self._planes = [np.asarray(plane) for plane in self._planes]
        return tuple(plane[k, 0] for plane in self._planes)


@dataclass
class _Picture:
    """A picture that is to be made, or under way in a row of a call."""

    of: Spread
    first: Planes
    second: Planes
    part: float
    begun: tuple[_Call, int] | None = None

    def planes(self) -> Planes:
        if self.begun is None:
            self.of.go()
        call, row = self.begun
        return call.row(row)


class _Looked(Sequence[Planes]):
    """Pictures, each waited for when it is looked at."""

    def __init__(self, made: list[_Picture]) -> None:
        self._made = made

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, k: int) -> Planes:
        return self._made[k].planes()


def coarser(cfg: vfi_table.Config, scale: Fraction, name: str) -> vfi_table.Config:
    """An interpolator's config with motion looked for on a smaller plane, as RIFE's authors have it
    for 4K: every flow block works at 1/scale of its own step. Warping and blending stay as fine.

    Raises:
        InputError: the network called `name` has no such steps.
    """
    if scale == 1:
        return cfg
    if hasattr(cfg, "members"):
        return dataclasses.replace(cfg, members=tuple(coarser(m, scale, name) for m in cfg.members))
    if not hasattr(cfg, "scales"):
        raise InputError(f"--scale: {name} looks for motion on one plane alone; RIFE has a choice")
    times = int(1 / scale)
    return dataclasses.replace(
        cfg, scales=tuple(step * times for step in cfg.scales), pad_to=cfg.pad_to * times
    )


@partial(jax.jit, static_argnames=("cfg", "layout", "views", "dtype"))
def _between(
    params: Any, first: Planes, second: Planes, times: jax.Array, **static: Any
) -> tuple[jax.Array, ...]:
    """Planes of two pictures and times [1, K] -> as many planes [K, rows, columns]."""
    pair = (tuple(plane[None] for plane in planes) for planes in (first, second))
    return tuple(plane[0] for plane in _made(params, *pair, times, **static))


@partial(jax.jit, static_argnames=("cfg", "layout", "views", "dtype"))
def _between_pairs(
    params: Any, first: Planes, second: Planes, times: jax.Array, **static: Any
) -> tuple[jax.Array, ...]:
    """Planes [P, rows, columns] of P pairs and times [P, K] -> planes [P, K, rows, columns], rows
    over the devices of a mesh."""
    run = partial(_made, **static)
    return shards.over_samples(run, params, first, second, times, gathered=False)


def _made(
    params: Any,
    first: Planes,
    second: Planes,
    times: jax.Array,
    *,
    cfg: vfi_table.Config,
    layout: Layout,
    views: int,
    dtype: Any,
) -> tuple[jax.Array, ...]:
    """Planes of P pairs and times [P, K] -> planes [P, K, rows, columns].

    What the samples have beyond black and white, which networks may cut off, is blended over time.
    Alpha passes through the network as a grey picture of its own.
    """
    shown = jax.vmap(lambda planes: pictures.rgb(planes, layout, jnp) * 2 - 1)
    pair = [shown(planes[:3]) for planes in (first, second)]
    count = len(times)
    if layout.alpha:
        top = 2.0**layout.bits - 1
        masks = [planes[3].astype(jnp.float32) / top * 2 - 1 for planes in (first, second)]
        masks = [jnp.broadcast_to(mask[..., None], (*mask.shape, 3)) for mask in masks]
        pair = [jnp.concatenate(both) for both in zip(pair, masks)]
        times = jnp.concatenate((times, times))
    known = [jnp.clip(x, -1.0, 1.0) for x in pair]
    new = networks.between(params, cfg, *known, times, views=views, dtype=dtype)
    before, after = ((x - y)[:, None] for x, y in zip(pair, known))
    part = times[..., None, None, None]
    new += (1 - part) * before + part * after
    new = new * 0.5 + 0.5
    hidden = jax.vmap(jax.vmap(lambda picture: pictures.from_rgb(picture, layout, jnp)))
    made = hidden(new[:count])
    if not layout.alpha:
        return made
    alpha = jnp.clip(jnp.round(new[count:].mean(-1) * top), 0, top).astype(layout.dtype)
    return (*made, alpha)
