"""Reads checkpoints as flat mappings from names to arrays.

safetensors files are read lazily and without torch. Pickles (.ckpt, .pt, .pth, .bin) go through
torch with `weights_only=True`, which refuses to run code, and stay on disk until read where their
format allows it.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mv2_jax import files
from mv2_jax.convert import containers
from mv2_jax.tensorfile import TYPES, Spec

SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
# Containers that training programs wrap a state dict in, and prefixes that they leave in names.
_WRAPPERS = ("state_dict", "model_state_dict")
_PREFIX = "module."
# What libraries call a network's weights in a folder. A file of another name may be anything's.
STEMS = ("model", "pytorch_model", "diffusion_pytorch_model", "adapter_model", "learned_embeds")


def load(path: str | os.PathLike[str], *, variant: str | None = None) -> Mapping[str, Any]:
    """The tensors of a file, or of a folder as diffusers and transformers save one.

    Args:
        path: a safetensors file, a pickle of tensors, or a folder with one of them or with shards
            and their index.
        variant: of a folder that holds several precisions, the one to take ("fp16"). Without it
            the plain files are taken, or where there are none, those of the only variant.

    Raises:
        FileNotFoundError: there is no such file, or no weights in the folder.
        OSError: it is a pipe or a device.
        ValueError: damaged, not a checkpoint, or a pickle that wants to run code.
    """
    return _open(paths(path, variant))


def paths(path: str | os.PathLike[str], variant: str | None = None) -> list[Path]:
    """The files that `load` reads. Raises as it does."""
    path = Path(path)
    if path.is_dir():
        return _weights(path, variant)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    files.regular(path)
    return [path]


def has_variant(path: str | os.PathLike[str], variant: str | None) -> bool:
    """Whether this is a folder with weights of that precision. Raises ValueError as `load`."""
    path = Path(path)
    return bool(path.is_dir() and variant and _of_variant(path, lambda name: name == variant))


def spec(source: Mapping[str, Any], key: str) -> Spec:
    """The shape and type of one tensor; of a source that reads lazily, without reading it.

    Raises:
        ValueError: a torch type that NumPy has no counterpart for.
    """
    if isinstance(source, Safetensors | View):
        return source.spec(key)
    tensor = source[key]
    if not hasattr(tensor, "detach"):
        return Spec(tuple(tensor.shape), np.dtype(tensor.dtype))
    name = str(tensor.dtype).removeprefix("torch.")
    try:
        dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    except TypeError:
        raise ValueError(f"{key} is of type {name}, which is not read") from None
    return Spec(tuple(tensor.shape), dtype)


class Safetensors(Mapping[str, np.ndarray]):
    """Tensors of one or several safetensors files, read from disk at each access.

    They are read and not mapped: pages of a mapped file would stay in memory while it is open.
    """

    def __init__(self, paths: list[Path]):
        self._where: dict[str, tuple[Path, int, Spec]] = {}
        self.metadata: dict[str, str] = {}
        for path in paths:
            begin, header = _header(path)
            self.metadata.update(header.pop("__metadata__", {}))
            for key, entry in header.items():
                if key in self._where:
                    raise ValueError(f"{key} is in several of {', '.join(p.name for p in paths)}")
                if entry["dtype"] not in TYPES:
                    raise ValueError(f"{path}: {key} is {entry['dtype']}, which is not read")
                known = Spec(tuple(entry["shape"]), TYPES[entry["dtype"]])
                self._where[key] = path, begin + entry["data_offsets"][0], known

    def __getitem__(self, key: str) -> np.ndarray:
        path, begin, (shape, dtype) = self._where[key]
        count = int(np.prod(shape, dtype=np.int64))
        # As bytes first: NumPy reads no files of types that it lacks itself.
        raw = np.fromfile(path, np.uint8, count * dtype.itemsize, offset=begin)
        return raw.view(dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def spec(self, key: str) -> Spec:
        """Shape and type of a tensor, without reading it."""
        return self._where[key][2]


class View(Mapping[str, Any]):
    """Some tensors of `source` under other names: `names` maps each new name to its own there."""

    def __init__(self, source: Mapping[str, Any], names: Mapping[str, str]):
        self._source, self._names = source, dict(names)

    def __getitem__(self, key: str) -> Any:
        return self._source[self._names[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def spec(self, key: str) -> Spec:
        """Shape and type of a tensor, without reading it."""
        return spec(self._source, self._names[key])

    def origin(self, key: str) -> str:
        """The tensor's name in `source`."""
        return self._names[key]


class Renamed(View):
    """The tensors of `source` whose name starts with `prefix`, without it; nothing is read."""

    def __init__(self, source: Mapping[str, Any], prefix: str):
        super().__init__(
            source, {key.removeprefix(prefix): key for key in source if key.startswith(prefix)}
        )


class Without(View):
    """The tensors of `source` whose names match none of some patterns, as a shell has them."""

    def __init__(self, source: Mapping[str, Any], patterns: Iterable[str]):
        marks = [re.compile(fnmatch.translate(pattern)) for pattern in patterns]
        super().__init__(source, {k: k for k in source if not any(m.match(k) for m in marks)})
        self.metadata: Mapping[str, str] = getattr(source, "metadata", {})


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where a safetensors file's numbers begin, and its header, found in order."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # it checks that offsets and sizes make sense
            pass
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error})") from None
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return 8 + size, json.loads(file.read(size))


def _open(paths: list[Path]) -> Mapping[str, Any]:
    """The tensors of one file, or of shards that hold different ones.

    Which of the two containers it is, a file's first bytes say, whatever it is called.
    """
    for path in paths:
        what = containers.other(path)
        if what:
            raise ValueError(f"{path} is {what}")
    if paths[0].suffix in SAFETENSORS and containers.is_pickle(paths[0]):
        raise ValueError(
            f"{paths[0]} is a pickle that is called {paths[0].suffix}; call it .ckpt, if you trust "
            "who made it"
        )
    if paths[0].suffix in SAFETENSORS or containers.is_safetensors(paths[0]):
        return Safetensors(paths)
    merged: dict[str, Any] = {}
    for path in paths:
        if path.suffix not in PICKLES:
            kinds = ", ".join((*SAFETENSORS, *PICKLES))
            raise ValueError(f"{path.name}: unknown kind of checkpoint; known are {kinds}")
        state = _pickle(path)
        twice = next((key for key in state if key in merged), None)
        if twice is not None:
            raise ValueError(f"{twice} is in several of {', '.join(p.name for p in paths)}")
        merged.update(state)
    return merged


def _weights(folder: Path, variant: str | None) -> list[Path]:
    """The weight files of a folder: shards by their index first, then one safetensors or pickle.

    A variant stands before the suffix (`model.fp16.safetensors`) or the shard's number
    (`model.fp16-00001-of-00002.safetensors`).
    """
    found = _of_variant(folder, lambda name: name == variant)
    if found is None and variant is None:
        if len({_variant(path) for path in _held(folder)}) == 1:
            found = _of_variant(folder, lambda name: name is not None)
    if found is None:
        what = f"{variant} weights" if variant else "weights"
        raise FileNotFoundError(f"no {what} (.safetensors, {', '.join(PICKLES)}) in {folder}")
    return found


def _of_variant(folder: Path, wanted: Callable[[str | None], bool]) -> list[Path] | None:
    weights = _held(folder)
    for suffix in (".safetensors", *PICKLES):
        indices = [p for p in sorted(folder.glob("*.index*.json")) if suffix in p.suffixes]
        for index in indices:
            if wanted(_variant(index)):
                return [folder / name for name in _shards(index)]
        found = [p for p in sorted(weights) if p.suffix == suffix and wanted(_variant(p))]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(f"{folder} holds several checkpoints ({names}); name one")
        if found:
            return found
    return None


def _held(folder: Path) -> list[Path]:
    """The weight files of a folder that are called as libraries call them; without any, all."""
    weights = [path for path in folder.iterdir() if path.suffix in (".safetensors", *PICKLES)]
    return [path for path in weights if is_named(path)] or weights


def is_named(path: Path) -> bool:
    """Whether a file is called as libraries call a network's weights, whole or a shard."""
    return re.split(r"[.-]", path.name, maxsplit=1)[0] in STEMS


def _variant(path: Path) -> str | None:
    """ "fp16" of `model.fp16.safetensors` and `model.safetensors.index.fp16.json`, else None."""
    middle = path.name.split(".")[1:-1]
    words = [word.partition("-")[0] for word in middle]
    known = {"safetensors", "index", *(suffix.removeprefix(".") for suffix in PICKLES)}
    return next((word for word in words if word not in known), None)


def _shards(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of shards ({error!r})") from None
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index} names a shard outside its folder: {name!r}")
        if not (index.parent / name).exists():
            raise FileNotFoundError(f"{index.name} names {name}, which is missing")
    return names


def _pickle(path: Path) -> dict[str, Any]:
    import torch

    try:
        with warnings.catch_warnings():  # of what the refusal says better
            warnings.simplefilter("ignore")
            data = _unpickled(torch, path)
    except OSError:
        raise
    except Exception as error:  # of whatever kind: a broken pickle can break torch anywhere
        wants = _WANTS.search(str(error))
        if wants:
            raise ValueError(
                f"{path} holds more than tensors: it wants {wants[1]}, which is not run; a "
                ".safetensors file of the same weights is safe"
            ) from None
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged ({first})") from None
    for wrapper in _WRAPPERS:
        if isinstance(data, dict) and isinstance(data.get(wrapper), dict):
            data = data[wrapper]
    flat = dict(_tensors(data, ""))
    if not flat:
        raise ValueError(f"{path} holds no named tensors")
    if all(key.startswith(_PREFIX) for key in flat):
        flat = {key.removeprefix(_PREFIX): tensor for key, tensor in flat.items()}
    return flat


class _Inert:
    """Stands for an object that a training run left beside the weights, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


# Training runs' own bookkeeping, which checkpoints of Stable Diffusion 1.x carry: a callback that
# kept the best weights, and numbers of NumPy. None of it is made; `_Inert` stands in its place.
_BOOKKEEPING = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
# How torch names what it refuses to run.
_WANTS = re.compile(r"GLOBAL ([\w.]+) was not an allowed global")


def _unpickled(torch: Any, path: Path) -> Any:
    with torch.serialization.safe_globals([(_Inert, name) for name in _BOOKKEEPING]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
        # Files from before torch 1.6 are no zip archives and cannot stay on disk.
        return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every tensor below a nest of dicts, its name the path joined by dots."""
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        name = f"{prefix}{key}"
        if hasattr(value, "detach"):
            if str(value.layout) != "torch.strided" or value.is_meta or value.is_quantized:
                raise ValueError(
                    f"{name} is no plain tensor (sparse, quantised or without numbers)"
                )
            if value.is_complex():
                raise ValueError(f"{name} is of complex numbers, which are not read")
            yield name, value
        else:
            yield from _tensors(value, f"{name}.")
