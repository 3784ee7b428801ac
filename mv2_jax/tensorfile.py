"""Writes safetensors files one tensor at a time, and reads parts of tensors.

The library's own writer wants every tensor, and then the whole file, in memory, and its reader
knows no buckets. The format is plain: eight bytes with the length of a JSON header, the header, and
the numbers one after another. Files are those the library would write, byte for byte.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mv2_jax import files
from mv2_jax.remote import Remote, place

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


APART = {"disk": 2**16, "bucket": 2**20}
"""Bytes; shorter runs of a file are not worth a read of their own."""

Index = tuple[slice, ...]


class Stored:
    """A tensor in a file, whose numbers are read where they are asked for: `stored[index]`.

    Args:
        spans: reads (begin, end) of the file.
        begin: of the tensor in the file.
        spec: as it is stored.
        dtype: as it comes out.
        kept: parts that were read, by index, where they are to be kept.
        apart: bytes; shorter runs are not worth a read of their own.
    """

    def __init__(
        self,
        spans: Callable[[Sequence[tuple[int, int]]], Sequence[bytes]],
        begin: int,
        spec: Spec,
        dtype: Any = None,
        kept: dict[Any, np.ndarray] | None = None,
        apart: int = 0,
    ) -> None:
        self._spans, self._begin, self._spec = spans, begin, spec
        self._kept, self._apart = kept, apart
        self.shape, self.dtype = spec.shape, np.dtype(dtype or spec.dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def astype(self, dtype: Any) -> Stored:
        """The same, coming out in another type."""
        return Stored(self._spans, self._begin, self._spec, dtype, self._kept, self._apart)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[()].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index: Index) -> np.ndarray:
        """A part of the tensor, of one slice an axis, without steps; those left out are whole."""
        rest = (slice(None),) * (self.ndim - len(index))
        ranges = tuple(range(n)[part] for part, n in zip((*index, *rest), self.shape))
        key = tuple((r.start, r.stop) for r in ranges)
        if self._kept is not None and key in self._kept:
            return self._kept[key].astype(self.dtype)
        part = self._read(ranges)
        if self._kept is not None:
            self._kept[key] = part
        return part.astype(self.dtype)

    def _read(self, ranges: tuple[range, ...]) -> np.ndarray:
        """Reads the runs of bytes that make up a part. Where they are short, more is read in one
        piece than is wanted."""
        shape, item = self.shape, self._spec.dtype.itemsize
        sizes = [len(r) for r in ranges]
        if not shape or not all(sizes):
            return self._block([(0, math.prod(sizes))]).reshape(sizes)
        cut = max((k for k, size in enumerate(sizes) if size < shape[k]), default=0)
        while cut and sizes[cut] * math.prod(shape[cut + 1 :]) * item < self._apart:
            cut -= 1
        step = math.prod(shape[cut + 1 :])  # numbers below one of the axis `cut`
        runs = []
        for above in itertools.product(*ranges[:cut]):
            row = 0
            for position, size in zip(above, shape):
                row = row * size + position
            first = (row * shape[cut] + ranges[cut].start) * step
            runs.append((first, first + sizes[cut] * step))
        block = self._block(runs).reshape(*sizes[: cut + 1], *shape[cut + 1 :])
        inner = tuple(slice(r.start, r.stop) for r in ranges[cut + 1 :])
        return block[(slice(None),) * (cut + 1) + inner]

    def _block(self, runs: Sequence[tuple[int, int]]) -> np.ndarray:
        """The numbers of runs from (first, last + 1), one after another."""
        item = self._spec.dtype.itemsize
        begin = self._begin
        spans = [(begin + a * item, begin + b * item) for a, b in runs if b > a]
        if not spans:
            return np.zeros(0, self._spec.dtype)
        return np.frombuffer(b"".join(self._spans(spans)), self._spec.dtype)


def read(path: str | os.PathLike[str] | Remote, keep: bool = False) -> dict[str, Stored]:
    """The tensors of a file by name; numbers are read as they are asked for.

    Args:
        keep: keep on this host what was read from a bucket.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no safetensors file, or is cut short.
    """
    path = place(path)
    size = path.stat().st_size
    far = isinstance(path, Remote)
    spans, apart = (path.read_spans, APART["bucket"]) if far else (_local(path), APART["disk"])
    try:
        length = int.from_bytes(spans([(0, 8)])[0], "little") if size >= 8 else size
        if length > size - 8:
            raise ValueError("its header is cut short")
        header = json.loads(spans([(8, 8 + length)])[0])
        header.pop("__metadata__", None)
        made = {}
        for name, entry in header.items():
            spec = Spec(tuple(map(int, entry["shape"])), TYPES[entry["dtype"]])
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= size - 8 - length or end - begin != spec.nbytes:
                raise ValueError(f"{name} does not fit in it")
            kept = {} if keep and far else None
            made[name] = Stored(spans, 8 + length + begin, spec, kept=kept, apart=apart)
        return made
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error})") from None


def _local(path: Any) -> Callable[[Sequence[tuple[int, int]]], Sequence[bytes]]:
    """Reads parts of a file on disk."""

    def spans(wanted: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        with open(path, "rb") as file:
            parts = []
            for begin, end in wanted:
                file.seek(begin)
                parts.append(file.read(end - begin))
            return parts

    return spans
