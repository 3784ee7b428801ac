"""Sharding, said once: the mesh, and the one table from parameter paths to its axes.

The mesh has four axes:

- `data`: samples of a batch; parameters whole on each device.
- `fsdp`: samples too, with parameters split over it and gathered where they are used.
- `context`: frames of a clip, or tokens of a plane (`mv2_jax.shards`).
- `tensor`: attention heads and the inner widths of layers.

This says where arrays lie between the networks' calls; within one, each device's program is
written out (`mv2_jax.shards`). XLA partitions what is left, elementwise work on samples: losses,
samplers, optimisers. A program runs under `with jax.set_mesh(mesh)`; with no mesh set `constrain`
does nothing.

One fallback, everywhere: axes whose sizes do not divide a dimension are left out, and the array
is whole along them. It costs memory or work, never correctness.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mv2_jax import params
from mv2_jax.lookup import one_of
from mv2_jax.tensorfile import Stored

AXES = ("data", "fsdp", "context", "tensor")

Axes = str | tuple[str, ...] | None
"""What one dimension is split over."""

SAMPLES: Axes = ("data", "fsdp")
FRAMES: Axes = ("data", "fsdp", "context")  # of samples and frames merged into one dimension

_WIDEN: tuple[Axes, ...] = ("fsdp", "tensor")  # [in, out] of a pair's first layer
_NARROW: tuple[Axes, ...] = ("tensor", "fsdp")  # [in, out] of its second
_WHOLE: tuple[Axes, ...] = ()

# Patterns are searched for in '/'-joined paths. Each parameter matches exactly one of them.
# A pair of layers (into heads or an inner width, and back out) splits its inner width over
# `tensor`, so that it costs one sum over devices (Megatron-LM, arXiv 1909.08053).
RULES: tuple[tuple[str, tuple[Axes, ...]], ...] = (
    # attention: UNet, VAE, resampler, then CLIP
    (r"/to_(q|k|v|k_ip|v_ip)/kernel$", _WIDEN),
    (r"/to_out_0/kernel$", _NARROW),
    (r"/(q|k|v)_proj/kernel$", _WIDEN),
    (r"/out_proj/kernel$", _NARROW),
    # feed-forward: UNet and resampler, then CLIP
    (r"/net_0/proj/kernel$", _WIDEN),
    (r"/net_2/kernel$", _NARROW),
    (r"/fc1/kernel$", _WIDEN),
    (r"/fc2/kernel$", _NARROW),
    # resnets
    (r"/resnets_\d+/conv1/kernel$", (None, None, *_WIDEN)),
    (r"/resnets_\d+/conv2/kernel$", (None, None, *_NARROW)),
    (r"/resnets_\d+/time_emb_proj/kernel$", _WIDEN),
    # biases of layers whose outputs are split
    (r"/(to_[qkv]|[qkv]_proj|fc1|net_0/proj|conv1|time_emb_proj)/bias$", ("tensor",)),
    # convolutions and linear layers outside pairs
    (r"/(conv_shortcut|(down|up)samplers_0/conv)/kernel$", (None, None, None, "fsdp")),
    (r"(^|/)(conv_in|conv_out|quant_conv|post_quant_conv)/kernel$", (None, None, None, "fsdp")),
    (r"(^|/)controlnet_(mid_block|down_blocks_\d+)/kernel$", (None, None, None, "fsdp")),
    (r"(^|/)controlnet_cond_embedding(/blocks_\d+)?/kernel$", (None, None, None, "fsdp")),
    (r"/patch_embedding/kernel$", (None, None, None, "fsdp")),
    (
        r"(^|/)(proj_in|proj_out|image_embeds|spatial_ch_projs|\w+_projection)/kernel$",
        (None, "fsdp"),
    ),
    # embeddings
    (r"/token_embedding/embedding$", (None, "fsdp")),
    (r"(^|/)(time_embedding|(control_)?add_embedding)/linear_1/kernel$", _WIDEN),
    (r"(^|/)(time_embedding|(control_)?add_embedding)/linear_2/kernel$", _NARROW),
    (r"(^|/)(time_embedding|(control_)?add_embedding)/linear_1/bias$", ("tensor",)),
    # whole: norms, the other biases, positions and learned tokens
    (r"/scale$", _WHOLE),
    (r"(^|/)(\w*norm\w*|pre_layrnorm|ln\d|ff_\d+)/bias$", _WHOLE),
    (
        r"/(to_out_0|out_proj|fc2|net_2|linear_2|conv2|conv_shortcut|(down|up)samplers_0/conv)/bias$",
        _WHOLE,
    ),
    (r"(^|/)(conv_in|conv_out|quant_conv|post_quant_conv|blocks_\d+)/bias$", _WHOLE),
    (r"(^|/)(proj_in|proj_out|image_embeds|spatial_ch_projs)/bias$", _WHOLE),
    (r"(^|/)controlnet_(mid_block|down_blocks_\d+|cond_embedding)/bias$", _WHOLE),
    (
        r"/(pe|position_embedding/embedding|class_embedding)$|(^|/)(latents|task_embedding/embedding)$",
        _WHOLE,
    ),
    # whole: RIFE, 6 million parameters in all
    (r"(^|/)(block\d+|encode)/", _WHOLE),
    # whole: LoRA's factors
    (r"/kernel/(down|up)$", _WHOLE),
    # The last rule holds where no other does. Whole: the GAN interpolator, its critic, the judge.
    (r"(^|/)(gan|critic|(frame|motion)_(trunk|hidden|head|heads_\d+))/", _WHOLE),
)


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    context: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
    """The mesh of these axis sizes over `devices` (default: all). Use it by `jax.set_mesh`.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = (data, fsdp, context, tensor)
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        named = ", ".join(f"{name} {size}" for name, size in zip(AXES, sizes))
        raise ValueError(
            f"a mesh of {named} needs {math.prod(sizes)} devices; there are {len(devices)}"
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def matching(path: str) -> list[int]:
    """Indices of the rules that match a '/'-joined parameter path; one, for every known one."""
    path = f"/{path}"  # a layer's own parameters, alone, match as they do in a network
    found = [i for i, (pattern, _) in enumerate(RULES) if re.search(pattern, path)]
    last = len(RULES) - 1
    return found if found == [last] else [i for i in found if i != last]


def fit(axes: Axes, size: int, mesh: Mesh | AbstractMesh) -> Axes:
    """`axes` for a dimension of `size`: those of them that together divide it into most parts.

    Axes that the mesh lacks, or has with size 1, are left out.
    """
    names = (axes,) if isinstance(axes, str) else axes or ()
    names = [name for name in names if mesh.shape.get(name, 1) > 1]
    best: tuple[str, ...] = ()
    parts = 1
    for count in range(1, len(names) + 1):
        for some in itertools.combinations(names, count):
            product = math.prod(mesh.shape[name] for name in some)
            if size % product == 0 and product > parts:
                best, parts = some, product
    if len(best) < 2:
        return best[0] if best else None
    return best


Rules = Sequence[tuple[str, tuple[Axes, ...]]]
"""(pattern, axes) rows, as `RULES`."""


def rule_for(path: str, more: Rules = ()) -> tuple[str, tuple[Axes, ...]] | None:
    """The row for a '/'-joined parameter path: the first of `more` that matches, else `RULES`'."""
    for row in more:
        if re.search(row[0], f"/{path}"):
            return row
    found = matching(path)
    return RULES[found[0]] if found else None


def spec_for(
    path: str, shape: Sequence[int], mesh: Mesh | AbstractMesh | None = None, more: Rules = ()
) -> P:
    """How the parameter at a '/'-joined path is split.

    Paths may carry a prefix, such as an optimiser's. Scalars are whole. With a `mesh`, axes that
    do not divide the shape are left out. `more` are rules of networks from outside the package,
    asked first.

    Raises:
        ValueError: no rule matches, or the rule is for another number of dimensions.
    """
    if not shape:
        return P()
    found = rule_for(path, more)
    if found is None:
        raise ValueError(f"no sharding rule matches parameter {path!r} of shape {tuple(shape)}")
    pattern, axes = found
    if axes and len(axes) != len(shape):
        raise ValueError(
            f"parameter {path!r} has shape {tuple(shape)}, but its sharding rule {pattern!r} is "
            f"for {len(axes)} dimensions"
        )
    if mesh is None:
        return P(*axes)
    return P(*(fit(a, size, mesh) for a, size in zip(axes, shape)))


def shardings(tree: Mapping[str, Any], mesh: Mesh, more: Rules = ()) -> dict[str, Any]:
    """A tree of `NamedSharding` for a tree of parameters, arrays or abstract; `more`: `spec_for`.

    Raises:
        ValueError: parameters that no rule fits; the message lists all of them.
    """
    out, wrong = {}, []
    for path, leaf in params.flatten(tree).items():
        try:
            out[path] = NamedSharding(mesh, spec_for(path, leaf.shape, mesh, more))
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError(
            f"{len(wrong)} parameters fit no rule of sharding.RULES:\n  " + "\n  ".join(wrong)
        )
    return params.unflatten(out)


def put(x: Any, layout: NamedSharding) -> jax.Array:
    """An array laid out over a mesh. Of a NumPy array each device is sent its own part only.

    Where the mesh spans processes, each of them must hold the whole array and uploads the parts of
    its own devices, without a word to the others: `jax.device_put` would have them compare it
    first, and a thread that prepares batches would meet their training steps in any order.
    Of a tensor in a file (`tensorfile.Stored`) a process reads the parts of its own devices.
    """
    if isinstance(x, Stored):
        return _put_stored(x, layout)
    if layout.is_fully_addressable:
        return jax.device_put(x, layout)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, layout, lambda part: host[part])


def _put_stored(x: Stored, layout: NamedSharding) -> jax.Array:
    parts: dict[Any, Any] = {}
    rows = []
    for device, index in layout.addressable_devices_indices_map(x.shape).items():
        index = index or ()
        key = tuple((part.start, part.stop) for part in index)
        if key not in parts:
            parts[key] = x[index]
        rows.append(jax.device_put(parts[key], device))
    return jax.make_array_from_single_device_arrays(x.shape, layout, rows)


def whole(x: Any, mesh: Mesh) -> jax.Array:
    """An array, or a key, whole on every device of a mesh; every process must hold it."""
    layout = NamedSharding(mesh, P())
    x = x if isinstance(x, np.ndarray | Stored) else jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(x), layout)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return put(x, layout)


def shard_params(tree: Mapping[str, Any], mesh: Mesh, more: Rules = ()) -> dict[str, Any]:
    """The parameters laid out over the mesh by `RULES` and `more`. Raises as `shardings` does."""
    where = shardings(tree, mesh, more)
    return jax.tree.map(put, params.unflatten(params.flatten(tree)), where)


def lay_out(tree: Any, mesh: Mesh | None, more: Rules = (), *, everywhere: bool = False) -> Any:
    """A component's parameters on the usual device, or over a mesh: by `more` and `RULES`, or whole
    on every device, as the interpolators' are, and those of networks that the rules do not know."""
    if mesh is None:
        return jax.tree.map(lambda x: jax.device_put(_read(x)), tree)
    if not everywhere:
        with suppress(ValueError):
            return shard_params(tree, mesh, more)
    return jax.tree.map(lambda leaf: whole(leaf, mesh), tree)


def _read(x: Any) -> Any:
    return np.asarray(x) if isinstance(x, Stored) else x


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """A tree of arrays with samples first, laid out with the samples split over data and fsdp.

    Every process makes the whole batch and keeps its own devices' rows (see `put`): where that is
    dear, each makes its own rows alone, for `shard_rows`.
    """

    def place(x: Any) -> jax.Array:
        spec = P(fit(SAMPLES, x.shape[0], mesh)) if getattr(x, "ndim", 0) else P()
        return put(x, NamedSharding(mesh, spec))

    return jax.tree.map(place, batch)


def shard_frames(batch: Any, mesh: Mesh) -> Any:
    """A tree of arrays whose rows are split over all axes that divide them, of one process."""

    def place(x: Any) -> jax.Array:
        return put(x, NamedSharding(mesh, P(fit(FRAMES, x.shape[0], mesh))))

    return jax.tree.map(place, batch)


def shard_rows(batch: Any, mesh: Mesh, rows: int) -> Any:
    """`shard_batch` for a batch of so many rows, of which each process holds its own alone."""

    def place(x: Any) -> jax.Array:
        layout = NamedSharding(mesh, P(fit(SAMPLES, rows, mesh)))
        return jax.make_array_from_process_local_data(layout, x, (rows, *x.shape[1:]))

    return jax.tree.map(place, batch)


def current_mesh() -> AbstractMesh | None:
    """The mesh set by `jax.set_mesh`, where it has several devices for XLA to partition over.

    None without one, and within `jax.shard_map`, where the program is one device's already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return None
    return mesh


def platform() -> str:
    """ "cpu", "gpu" or "tpu": what a program traced here will run on.

    That is the platform of the mesh's devices, which may be absent ones (`mv2 plan`), or the
    default backend.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def constrain(x: jax.Array, *axes: Axes) -> jax.Array:
    """Splits an activation: `axes` says over what, dimension by dimension, the rest whole.

    `constrain(x, FRAMES)` splits merged samples and frames. No-op where no mesh is set.

    Raises:
        ValueError: an unknown axis, or more axes than dimensions.
    """
    named: Iterable[str] = (
        a for axis in axes for a in ((axis,) if isinstance(axis, str) else axis or ())
    )
    for axis in named:
        one_of(axis, AXES, "mesh axis")
    if len(axes) > x.ndim:
        raise ValueError(f"{len(axes)} axes for an array of shape {x.shape}")
    mesh = current_mesh()
    if mesh is None:
        return x
    spec = P(*(fit(axis, size, mesh) for axis, size in zip(axes, x.shape)))
    return jax.lax.with_sharding_constraint(x, spec)
