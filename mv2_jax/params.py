"""Parameter trees: merging, splitting, casting, naming, loading and saving.

A tree is plain nested dicts with arrays at the leaves; a leaf's name is its path joined by '/'.
Trees are kept apart by what owns them (`spatial`, `motion`, `image_attn`, `control`) and merged
when applied. Every function here takes NumPy and JAX arrays alike, and `merge`, `split` and
`cast` work on tracers too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from mv2_jax import tensorfile
from mv2_jax.remote import Remote, place
from mv2_jax.tensorfile import Spec

Tree = dict[str, Any]


@dataclass(frozen=True)
class Pending:
    """A tree that `save` makes leaf by leaf, for trees too large to lie in memory.

    `specs` are every leaf's shape and type by its name; `make()` yields (name, array), each once,
    in any order.
    """

    specs: Mapping[str, Spec]
    make: Callable[[], Iterable[tuple[str, np.ndarray]]]


_FLOATS = tuple(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))
# One metadata entry holds them all as JSON: safetensors writes several in a random order, and
# then equal weights would not have equal checksums.
_METADATA = "mv2"


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{'a/b/c': leaf} of a nested tree, in the tree's order. Empty branches vanish.

    Raises:
        ValueError: a key that is not text, is empty or holds a '/'.
    """
    flat: dict[str, Any] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if not isinstance(key, str) or not key or "/" in key:
                raise ValueError(f"bad parameter name {key!r} under {prefix or 'the root'!r}")
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{key}/")
            else:
                flat[prefix + key] = value

    walk(tree, "")
    return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """The nested tree of {'a/b/c': leaf}; inverse of `flatten`.

    Raises:
        ValueError: a name that is both a leaf and a branch.
    """
    tree: Tree = {}
    for name, leaf in flat.items():
        *branches, last = name.split("/")
        node = tree
        for key in branches:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ValueError(f"parameter {name!r} lies below another parameter, {key!r}")
        if last in node:
            raise ValueError(f"parameter {name!r} is both a leaf and a branch")
        node[last] = leaf
    return tree


def merge(*trees: Mapping[str, Any]) -> Tree:
    """One tree with every leaf of the given ones, which must be disjoint.

    Raises:
        ValueError: two trees hold the same leaf; the message names some of them.
    """
    merged: dict[str, Any] = {}
    for tree in trees:
        flat = flatten(tree)
        clash = sorted(merged.keys() & flat.keys())
        if clash:
            more = f" and {len(clash) - 3} more" if len(clash) > 3 else ""
            raise ValueError(f"trees to merge share parameters: {', '.join(clash[:3])}{more}")
        merged.update(flat)
    return unflatten(merged)


def split(tree: Mapping[str, Any], predicate: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """(leaves whose name satisfies `predicate`, the others). `merge` joins them again."""
    chosen: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, leaf in flatten(tree).items():
        (chosen if predicate(name) else others)[name] = leaf
    return unflatten(chosen), unflatten(others)


def cast(tree: Mapping[str, Any], dtype: Any) -> Tree:
    """The tree with every floating-point leaf as `dtype`; integers and keys stay as they are."""
    flat = flatten(tree)
    return unflatten(
        {k: v.astype(dtype) if v.dtype in _FLOATS else v for k, v in flat.items()},
    )


def count(tree: Mapping[str, Any]) -> int:
    """How many numbers the tree holds. Leaves may be abstract shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in flatten(tree).values())


def digest(tree: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and values: equal for equal trees, whatever the order."""
    return _digest((name, _host(leaf)) for name, leaf in sorted(flatten(tree).items()))


def file_digest(path: str | os.PathLike[str]) -> str:
    """`digest` of the tree in a file, one leaf in memory at a time. Raises as `load` does."""
    with _open(path) as file:
        return _digest((name, file.get_tensor(name)) for name in sorted(file.keys()))


def _digest(leaves: Iterable[tuple[str, np.ndarray]]) -> str:
    state = hashlib.sha256()
    for name, array in leaves:
        state.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def save(
    path: str | os.PathLike[str],
    tree: Mapping[str, Any] | Pending,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes the tree as safetensors with '/'-joined names; the file appears whole or not at all.

    `metadata` is anything JSON takes. Equal trees and metadata give equal bytes.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(dict(metadata or {}), sort_keys=True)
    if isinstance(tree, Pending):
        specs, leaves = tree.specs, tree.make()
    else:
        arrays = {name: _host(leaf) for name, leaf in flatten(tree).items()}
        specs = {name: Spec(array.shape, array.dtype) for name, array in arrays.items()}
        leaves = arrays.items()
    tensorfile.write(path, specs, leaves, {_METADATA: text})


def load(path: str | os.PathLike[str] | Remote) -> Tree:
    """The tree of a safetensors file, as NumPy arrays in the stored types.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or is not safetensors.
    """
    path = place(path)
    if isinstance(path, Remote):
        return unflatten({name: np.asarray(leaf) for name, leaf in tensorfile.read(path).items()})
    with _open(path) as file:
        return unflatten(file.get_tensors())


def stored(path: str | os.PathLike[str] | Remote, keep: bool = False) -> Tree:
    """The tree of a file as `tensorfile.Stored` leaves, whose numbers are read where they are asked
    for; `keep` as there. Raises OSError, ValueError as `load`."""
    return unflatten(tensorfile.read(path, keep))


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata given to `save`, read without the arrays. Raises as `load` does."""
    with _open(path) as file:
        return json.loads((file.metadata() or {}).get(_METADATA, "{}"))


def _open(path: str | os.PathLike[str]) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(os.fspath(path), framework="np")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error})") from None


def _host(leaf: Any) -> np.ndarray:
    """The leaf as a contiguous array in memory: safetensors reads raw memory and asks nothing."""
    return np.asarray(leaf, order="C")
