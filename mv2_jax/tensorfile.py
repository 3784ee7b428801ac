"""Writes safetensors files one tensor at a time.

The library's own writer wants every tensor, and then the whole file, in memory. The format is
plain: eight bytes with the length of a JSON header, the header, and the numbers one after another.
Files are those the library would write, byte for byte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mv2_jax import files

# The format's names of types, in the order in which the library lays tensors out: largest first,
# so that all are aligned.
TYPES: dict[str, np.dtype] = {
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in TYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(_CODES)}


class Spec(NamedTuple):
    """What is known of a tensor before it is read. It has the `.shape` that `jax` looks for."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write(
    path: str | os.PathLike[str],
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file, which appears whole or not at all.

    Args:
        specs: every tensor's shape and type.
        tensors: (name, array) in any order, each once.
        metadata: texts by name.

    Raises:
        OSError: the file cannot be written.
        ValueError: a type the format lacks; a tensor unlike its spec, missing, or given twice.
    """
    for name, spec in specs.items():
        if spec.dtype not in _CODES:
            raise ValueError(f"{name}: safetensors holds no {spec.dtype}")
    order = sorted(specs, key=lambda name: (_RANKS[specs[name].dtype], name))
    header, places = _header(order, specs, metadata)
    with files.whole(path) as scratch, open(scratch, "wb") as file:
        file.write(header)
        for name, array in tensors:
            spec = specs.get(name)
            if spec is None or (array.shape, array.dtype) != spec:
                raise ValueError(f"{name}: {array.dtype} {array.shape} was not expected ({spec})")
            if name not in places:
                raise ValueError(f"{name} came twice")
            file.seek(places.pop(name))
            # Types that NumPy lacks cannot write themselves; their bytes can.
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        if places:
            raise ValueError(f"{len(places)} tensors never came, such as {next(iter(places))}")


def _header(
    order: list[str], specs: Mapping[str, Spec], metadata: Mapping[str, str] | None
) -> tuple[bytes, dict[str, int]]:
    """The bytes before the first tensor, and where in the file each begins."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begins, end = {}, 0
    for name in order:
        spec = specs[name]
        begins[name], end = end, end + spec.nbytes
        entries[name] = {
            "dtype": _CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begins[name], end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + begin for name, begin in begins.items()}
