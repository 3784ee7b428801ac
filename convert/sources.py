"""Reads checkpoints as flat mappings from names to arrays.

safetensors files are read lazily and without torch. Pickles (.ckpt, .pt, .pth, .bin) go through
torch with `weights_only=True`, which refuses to run code, and stay on disk until read where their
format allows it.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
# Containers that training programs wrap a state dict in, and prefixes that they leave in names.
_WRAPPERS = ("state_dict", "model_state_dict")
_PREFIX = "module."


def load(path: str | os.PathLike[str], *, variant: str | None = None) -> Mapping[str, Any]:
    """The tensors of a file, or of a folder as diffusers and transformers save one.

    Args:
        path: a safetensors file, a pickle of tensors, or a folder with one of them or with shards
            and their index.
        variant: of a folder that holds several precisions, the one to take ("fp16").

    Raises:
        FileNotFoundError: there is no such file, or no weights in the folder.
        ValueError: damaged, not a checkpoint, or a pickle that wants to run code.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path, variant)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return Safetensors([path])
    if path.suffix in _PICKLES:
        return _pickle(path)
    raise ValueError(
        f"{path.name}: unknown kind of checkpoint; known are .safetensors, {', '.join(_PICKLES)}"
    )


class Safetensors(Mapping[str, np.ndarray]):
    """Tensors of one or several safetensors files, read from disk at each access."""

    def __init__(self, paths: list[Path]):
        from safetensors import SafetensorError, safe_open

        self._where: dict[str, Any] = {}
        for path in paths:
            try:
                file = safe_open(path, framework="np")
            except SafetensorError as error:
                raise ValueError(f"{path} is damaged or not a safetensors file ({error})") from None
            for key in file.keys():
                if key in self._where:
                    raise ValueError(f"{key} is in several of {', '.join(p.name for p in paths)}")
                self._where[key] = file

    def __getitem__(self, key: str) -> np.ndarray:
        return self._where[key].get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


class Renamed(Mapping[str, Any]):
    """The tensors of `source` whose name starts with `prefix`, without it; nothing is read."""

    def __init__(self, source: Mapping[str, Any], prefix: str):
        self._source = source
        self._names = {key.removeprefix(prefix): key for key in source if key.startswith(prefix)}

    def __getitem__(self, key: str) -> Any:
        return self._source[self._names[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _folder(path: Path, variant: str | None) -> Mapping[str, Any]:
    """The weights of a folder: an index of shards first, then a single safetensors, then pickles.

    The variant stands before the suffix: `model.fp16.safetensors`.
    """

    def wanted(file: Path) -> bool:
        kind = file.name.removesuffix(".json").removesuffix(".index")
        return ("." in Path(kind).stem) == (variant is not None) and (
            variant is None or f".{variant}." in file.name
        )

    for index in sorted(filter(wanted, path.glob("*.safetensors*.index*.json"))):
        return Safetensors([path / name for name in _shards(index)])
    for pattern in ("*.safetensors", *(f"*{suffix}" for suffix in _PICKLES)):
        found = sorted(filter(wanted, path.glob(pattern)))
        if len(found) > 1:
            raise ValueError(
                f"{path} holds several checkpoints ({', '.join(f.name for f in found)}); name one"
            )
        if found:
            return load(found[0])
    what = f"{variant} weights" if variant else "weights"
    raise FileNotFoundError(f"no {what} (.safetensors, {', '.join(_PICKLES)}) in {path}")


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
        try:
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # Files from before torch 1.6 are no zip archives and cannot stay on disk.
            data = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged or holds more than tensors ({first})") from None
    for wrapper in _WRAPPERS:
        if isinstance(data, dict) and isinstance(data.get(wrapper), dict):
            data = data[wrapper]
    flat = dict(_tensors(data, ""))
    if not flat:
        raise ValueError(f"{path} holds no named tensors")
    if all(key.startswith(_PREFIX) for key in flat):
        flat = {key.removeprefix(_PREFIX): tensor for key, tensor in flat.items()}
    return flat


def _tensors(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every tensor below a nest of dicts, its name the path joined by dots."""
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        name = f"{prefix}{key}"
        if hasattr(value, "detach"):
            yield name, value
        else:
            yield from _tensors(value, f"{name}.")
