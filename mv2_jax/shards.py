"""A network's program, written for one device of a mesh: what each holds, and what they exchange.

XLA's partitioner is not asked how to split a network: it gets some sums wrong (see
tests/test_partitioner.py), and moves whole activations where little would do. `per_device` runs a
function once on every device of the mesh, on that device's share of the arguments, and every
exchange between devices is written out: here, in mv2_jax.exchanges, or by their callers. Without a
mesh it calls the function, and nothing else here does anything.

What lies where, within such a program:

- samples: split over those of data and fsdp that divide them;
- a clip's frames: split over context, and over what of data and fsdp the samples left. Where they
  do not divide, clips are filled up to a multiple at their end (`Layout.frames` of them are true);
- tokens of a plane: split over the axes that are left then, within the spatial attention alone;
- rows of a plane, in the autoencoder: split over those axes, all the way (`over_frames`);
- parameters: as `sharding.RULES` says. A layer gathers its own where it uses it (`parameter`), so
  that weights travel unit by unit and activations never travel for their sake;
- what no axis divides is whole on each of its devices: repeated work, the same result.

Gradients go through the exchanges backwards (a gathered weight's is summed and split again), and
are exact: each device answers for its part of an output that several hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from mv2_jax import sharding

Axes = tuple[str, ...]


class Layout(NamedTuple):
    """How a program's activations lie, beside its samples.

    frames: how many a clip has in all, where they are split over the axes `over`; else 0.
    tokens: the axes that a plane's tokens are split over in spatial attention.
    cells: how many rows a plane has in all on its coarsest level, where planes are split over the
        axes `rows` from top to bottom; else 0. Finer levels have a whole number of rows for each.
    rules: rows of networks from outside the package, asked before `sharding.RULES`.
    """

    frames: int = 0
    over: Axes = ()
    tokens: Axes = ()
    cells: int = 0
    rows: Axes = ()
    rules: sharding.Rules = ()


_WHOLE = Layout()
# Part of every cache key of `jax.jit`, as the mesh is.
_layout = jax.make_user_context(_WHOLE)


def layout() -> Layout:
    """That of the program being traced; nothing is split outside of `per_device`."""
    return _layout.value


def count(axes: str | Sequence[str]) -> int:
    """How many devices these axes have, within `per_device`; 1 outside of it."""
    mesh = jax.sharding.get_abstract_mesh()
    names = (axes,) if isinstance(axes, str) else axes
    return math.prod(mesh.shape[name] for name in names if name in mesh.manual_axes)


def inside() -> bool:
    """Whether the program being traced is one device's, of a mesh of `sharding.make_mesh`."""
    return any(name in sharding.AXES for name in jax.sharding.get_abstract_mesh().manual_axes)


def check() -> None:
    """Refuses a layer whose program XLA would partition.

    Raises:
        ValueError: a mesh is set, and the layer is called outside of `per_device`.
    """
    if sharding.current_mesh() is not None:
        raise ValueError(
            "a network is called under a mesh, but not per device: call it through "
            "mv2_jax.models.backbone.denoise, or mv2_jax.shards.per_device"
        )


def lay_out(samples: int, frames: int, mesh: AbstractMesh) -> tuple[sharding.Axes, Layout]:
    """The axes that split `samples`, and the layout of clips of so many `frames`."""
    split = sharding.fit(sharding.SAMPLES, samples, mesh)
    taken = (split,) if isinstance(split, str) else split or ()
    free = [name for name in ("context", "fsdp", "data") if mesh.shape.get(name, 1) > 1]
    free = [name for name in free if name not in taken]
    over = _dividing(frames, free, mesh)
    tokens = tuple(name for name in free if name not in over)
    return split, Layout(frames if over else 0, over, tokens)


def _dividing(size: int, axes: Sequence[str], mesh: AbstractMesh) -> Axes:
    """Those of the axes that leave each device fewer of `size` things."""
    taken: Axes = ()
    parts = 1
    for name in axes:
        more = parts * mesh.shape[name]
        if -(-size // more) < -(-size // parts):
            taken, parts = (*taken, name), more
    return taken


def per_device(
    function: Callable[..., Any],
    args: Sequence[Any],
    specs: Callable[[AbstractMesh], tuple[Any, Any]],
    layout: Layout = _WHOLE,
) -> Any:
    """`function(*args)`, run by each device on its share.

    Args:
        function: traced once, with the shares' shapes.
        specs: (mesh) -> (specs of the arguments, specs of the results), as `jax.shard_map` takes
            them; called under a mesh alone. Splits must divide.
        layout: what `layout()` is within.
    """
    mesh = sharding.current_mesh()
    if mesh is None:
        return function(*args)

    def local(*args: Any) -> Any:
        with _layout(layout):
            return function(*args)

    given, made = specs(mesh)
    # Kernels carry no types of what varies over which axis, so those are not checked.
    run = jax.shard_map(local, mesh=mesh, in_specs=given, out_specs=made, check_vma=False)
    return run(*args)


def params_specs(
    tree: Any, mesh: AbstractMesh, gathered: bool = True, more: sharding.Rules = ()
) -> Any:
    """The specs of a tree of parameters: by `more` and `sharding.RULES` for layers that gather
    their own, else whole ones."""

    def spec(path: tuple[Any, ...], leaf: Any) -> P:
        name = "/".join(str(part.key) for part in path)
        return sharding.spec_for(name, leaf.shape, mesh, more) if gathered else P()

    return jax.tree_util.tree_map_with_path(spec, tree)


def over_samples(
    function: Callable[..., Any],
    params: Any,
    *arrays: Any,
    results: Any = "rows",
    gathered: bool = True,
) -> Any:
    """`function(params, *arrays)`, rows of the arrays split over all axes that divide them.

    Args:
        arrays: trees of arrays, all with the same leading axis.
        results: of each result (or of a branch of their tree) "rows", it has one for each row of
            the arrays; "same", it is the same for any rows; or "mean", it is their mean.
        gathered: whether the layers gather their own parameters; else they are given whole.
    """

    mesh = sharding.current_mesh()
    if mesh is None:
        return function(params, *arrays)
    split = sharding.fit(sharding.FRAMES, jax.tree.leaves(arrays)[0].shape[0], mesh)

    def local(params: Any, *arrays: Any) -> Any:
        def finish(kind: str, branch: Any) -> Any:
            return lax.pmean(branch, split) if kind == "mean" and split else branch

        return jax.tree.map(finish, results, function(params, *arrays))

    def specs(mesh: AbstractMesh) -> tuple[Any, Any]:
        made = jax.tree.map(lambda kind: P(split) if kind == "rows" else P(), results)
        return (params_specs(params, mesh, gathered), *([P(split)] * len(arrays))), made

    return per_device(local, (params, *arrays), specs)


def over_frames(
    function: Callable[[Any, jax.Array], jax.Array], params: Any, x: jax.Array, cells: int = 0
) -> jax.Array:
    """`function(params, x)` for x [B, T, H, W, C] whose frames know nothing of each other -> the
    same, with other planes.

    Where samples and frames leave axes of the mesh, these split the planes' rows, so that devices
    share the work and the memory of one frame. Planes are whole before and after.
    Where frames do not divide, all devices get all of the result, and else their part of it.

    Args:
        cells: how many rows the planes have where they are coarsest; H and the result's rows are
            multiples of it. 0: `function` does not know of split planes (`exchanges.with_halo`).
    """
    mesh = sharding.current_mesh()
    if mesh is None:
        return function(params, x)
    samples, split = lay_out(x.shape[0], x.shape[1], mesh)
    # In the mesh's order: `lax.ppermute` numbers devices so, whatever order it is given.
    rows = tuple(name for name in sharding.AXES if name in _dividing(cells, split.tokens, mesh))
    split = split._replace(tokens=(), cells=cells if rows else 0, rows=rows)
    even = x.shape[1] % math.prod(mesh.shape[name] for name in split.over) == 0

    def local(params: Any, x: jax.Array) -> jax.Array:
        x = x if even else own(x)
        if rows:
            made = function(params, share(x, rows, 2, unit=x.shape[2] // cells))
            x = join(made, rows, 2, rows_in_all(made.shape[2]))
        else:
            x = function(params, x)
        return x if even else joined(x)

    spec = P(samples, (split.over or None) if even else None)
    return per_device(local, (params, x), lambda m: ((params_specs(params, m), spec), spec), split)


def over_gaps(
    function: Callable[[Any, jax.Array], jax.Array], params: Any, clips: jax.Array, times: int
) -> jax.Array:
    """`function(params, clips)`, which puts frames between those of clips [B, T, ...]: `times` for
    each. The gaps are split over the mesh, the parameters whole, and so is the result.
    """
    mesh = sharding.current_mesh()
    gaps = clips.shape[1] - 1 if clips.ndim > 1 else 0
    if mesh is None or gaps < 1:
        return function(params, clips)
    samples, layout = lay_out(clips.shape[0], gaps, mesh)

    def local(params: Any, clips: jax.Array) -> jax.Array:
        parts = count(layout.over)
        if parts == 1:
            return function(params, clips)
        here = -(-gaps // parts)
        # The last frame again fills up the clip: what comes between is dropped.
        fill = jnp.repeat(clips[:, -1:], here * parts - gaps, axis=1)
        start = lax.axis_index(layout.over) * here
        own = lax.dynamic_slice_in_dim(jnp.concatenate((clips, fill), 1), start, here + 1, 1)
        made = join(function(params, own)[:, :-1], layout.over, 1, gaps * times)
        return jnp.concatenate((made, clips[:, -1:]), 1)

    spec = P(samples)
    return per_device(
        local, (params, clips), lambda m: ((params_specs(params, m, False), spec), spec), layout
    )


def share(x: jax.Array, axes: Axes, dim: int, unit: int = 1) -> jax.Array:
    """This device's part of an array that is whole, along `dim`, filled up with zeros.

    `unit`: parts are multiples of it, as the whole is.
    """
    parts = count(axes)
    if parts == 1:
        return x
    size = -(-x.shape[dim] // unit // parts) * unit
    pad = [(0, 0)] * x.ndim
    pad[dim] = (0, size * parts - x.shape[dim])
    return lax.dynamic_slice_in_dim(jnp.pad(x, pad), lax.axis_index(axes) * size, size, dim)


def join(x: jax.Array, axes: Axes, dim: int, size: int) -> jax.Array:
    """The inverse of `share`: the whole array, `size` along `dim`."""
    if count(axes) == 1:
        return x
    x = lax.all_gather(x, axes, axis=dim, tiled=True)
    return lax.slice_in_dim(x, 0, size, axis=dim)


def frames(here: int) -> int:
    """How many frames a clip has in all, of which `here` are on this device."""
    return layout().frames or here


def own(clip: jax.Array, axis: int = 1) -> jax.Array:
    """This device's frames of whole clips [B, T, ...]; `axis` is T's."""
    return share(clip, layout().over, axis) if layout().frames else clip


def joined(clip: jax.Array, axis: int = 1) -> jax.Array:
    """Whole clips [B, T, ...] from each device's frames; `axis` is T's."""
    split = layout()
    return join(clip, split.over, axis, split.frames) if split.frames else clip


def frames_here(frames: int) -> int:
    """How many of a clip's `frames` a device holds, those that fill it up included."""
    return -(-frames // count(layout().over)) if frames > 1 else frames


def cells_here() -> int:
    """Of a split plane's cells, those on a device, with those that fill it up."""
    split = layout()
    return -(-split.cells // count(split.rows))


def rows_in_all(here: int) -> int:
    """How many rows a plane has in all, of which `here` are on this device."""
    return layout().cells * here // cells_here() if layout().rows else here


def parts(*sizes: int) -> int:
    """Over how many devices of the tensor axis heads or an inner width are split: all, or 1 where
    they do not divide all of `sizes`.

    The layer into it makes a device's part of the width, the layer out of it sums over devices
    (Megatron-LM, arXiv 1909.08053).
    """
    devices = count("tensor")
    return 1 if any(size % devices for size in sizes) else devices


def parameter(value: jax.Array, path: str, shape: Sequence[int]) -> jax.Array:
    """A parameter as its layer declares it, from this device's share of it.

    Dimensions that the layer wants larger are gathered over the axis that their rule names; those
    that it wants smaller, a part of the heads or of an inner width, are cut over `tensor`.

    Args:
        path: '/'-joined.
        shape: as declared.

    Raises:
        ValueError: no such axis makes the one of the other.
    """
    found = sharding.rule_for(path, layout().rules)
    axes = found[1] if found else ()
    for dim, (size, wanted) in enumerate(zip(value.shape, shape)):
        axis = axes[dim] if axes else None
        if size == wanted:
            continue
        if size > wanted and size == wanted * count("tensor"):
            value = share(value, ("tensor",), dim)
        elif isinstance(axis, str) and size * count(axis) == wanted:
            value = join(value, (axis,), dim, wanted)
        else:
            raise ValueError(
                f"parameter {path!r} is {tuple(value.shape)} on a device, and its layer wants "
                f"{tuple(shape)}: no axis of the mesh makes the one of the other"
            )
    return value
