"""The network of `mv2 interpolate`, from the encoder's planes to the encoder's planes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import params as parameters
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
    name: str, views: int, layout: Layout, scale: Fraction = Fraction(1)
) -> Callable[[Planes, Planes, Sequence[float]], list[Planes]]:
    """A function that makes the pictures at some times in (0, 1) between two.

    Args:
        name: of the interpolator, other than "none" (see `infer.interpolators`).
        views: how often each picture is made, see `stages.interpolators.between`.
        layout: of the pictures that it will get.
        scale: of the plane that motion is looked for on, 1/8 to 1; see `coarser`.

    Raises:
        InputError: the file `name` is no good; and the function, for a time the network cannot do.
    """
    cache.enable()
    stored, cfg = interpolators.load(name)
    cfg = coarser(cfg, scale, name)
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    params = jax.device_put(parameters.cast(stored, dtype))
    together = 1 if layout.height * layout.width >= ALONE else 2
    if vfi_table.shares(cfg):
        together = AT_ONCE
    middle_alone = not vfi_table.any_time(cfg)

    def fill(first: Planes, second: Planes, parts: Sequence[float]) -> list[Planes]:
        if middle_alone and any(part != 0.5 for part in parts):
            raise InputError(f"{name} knows the middle between two frames alone; use --times 2")
        made: list[Planes] = []
        for start in range(0, len(parts), together):
            wanted = list(parts[start : start + together])
            count = len(wanted)
            wanted += wanted[-1:] * (together - count if start else 0)
            times = np.float32(wanted)[None]
            new = _between(
                params, first, second, times, cfg=cfg, layout=layout, views=views, dtype=dtype
            )
            new = [np.asarray(plane) for plane in new]
            made += [tuple(plane[k] for plane in new) for k in range(count)]
        return made

    return fill


def coarser(cfg: Any, scale: Fraction, name: str) -> Any:
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
    params: Any,
    first: Planes,
    second: Planes,
    times: jax.Array,
    *,
    cfg: Any,
    layout: Layout,
    views: int,
    dtype: Any,
) -> tuple[jax.Array, ...]:
    """Planes of two pictures and times [1, K] -> as many planes [K, rows, columns].

    What the samples have beyond black and white, which networks may cut off, is blended over time.
    Alpha passes through the network as a grey picture of its own.
    """
    pair = [pictures.rgb(planes[:3], layout, jnp) * 2 - 1 for planes in (first, second)]
    if layout.alpha:
        top = 2.0**layout.bits - 1
        masks = [planes[3].astype(jnp.float32) / top * 2 - 1 for planes in (first, second)]
        masks = [jnp.broadcast_to(mask[..., None], (*mask.shape, 3)) for mask in masks]
        pair = [jnp.stack(both) for both in zip(pair, masks)]
        times = jnp.concatenate((times, times))
    else:
        pair = [x[None] for x in pair]
    known = [jnp.clip(x, -1.0, 1.0) for x in pair]
    new = networks.between(params, cfg, *known, times, views=views, dtype=dtype)
    before, after = ((x - y)[:, None] for x, y in zip(pair, known))
    part = times[..., None, None, None]
    new += (1 - part) * before + part * after
    new = new * 0.5 + 0.5
    made = jax.vmap(lambda picture: pictures.from_rgb(picture, layout, jnp))(new[0])
    if not layout.alpha:
        return made
    alpha = jnp.clip(jnp.round(new[1].mean(-1) * top), 0, top).astype(layout.dtype)
    return (*made, alpha)
