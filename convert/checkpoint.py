"""A source that was opened: where it lies, and every network in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mv2_jax.convert import hub, kinds, quantised, sources
from mv2_jax.convert.kind import FileNetwork
from mv2_jax.convert.ops import as_numpy
from mv2_jax.convert.recognise import MARKS, recognise
from mv2_jax.errors import InputError

_SETTINGS = ("config.json", "adapter_config.json")
_SCHEDULE, _INDEX = "scheduler/scheduler_config.json", "model_index.json"


@dataclass(frozen=True)
class SourceNetwork:
    """One network of a source.

    asked: what the user wrote. path: the file or the network's own folder, and variant: of which
    precision. settings: its config.json, or {}.
    """

    asked: str
    path: Path
    variant: str | None
    part: FileNetwork
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A source's networks, and what it says of how its UNet is sampled (see `schedules`).

    asked: what the user wrote. schedule: the settings of a pipeline's scheduler. marks: tensors
    that say something by being there, and the number of those that hold one. metadata: of a
    safetensors file.
    """

    asked: str
    found: tuple[SourceNetwork, ...]
    schedule: Mapping[str, Any] | None
    marks: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def all(self, kind: str) -> list[SourceNetwork]:
        """Its networks of a kind (a key of `kinds.KINDS`), or of one that fills its place."""
        names = {name for name, each in kinds.every() if kind in (name, each.fills)}
        return [found for found in self.found if found.part.kind in names]

    def one(self, kind: str) -> SourceNetwork:
        """Its only network of a kind, as `all` has it.

        Raises:
            InputError: it holds none, or several; the message says what it does hold.
        """
        hits = self.all(kind)
        if len(hits) == 1:
            return hits[0]
        held = " and ".join(found.part.title for found in self.found)
        titles = " or ".join(e.title for name, e in kinds.every() if kind in (name, e.fills))
        if hits:
            raise InputError(f"{self.asked} holds several: {held}; name the file of one")
        raise InputError(f"{self.asked} holds {held}, not {titles}")


def open_checkpoint(
    asked: str, variant: str | None = None, ignore: Sequence[str] = ()
) -> Checkpoint:
    """Opens a source: a file, a network's folder, a pipeline's folder, or a hub id.

    Nothing but names, shapes and settings is read. Parts that have no weights of `variant` ("fp16")
    give their plain ones. Tensors whose names match a pattern of `ignore` ("*.loss.*", as a shell
    has them) are left out, as if they were not there.

    Raises:
        InputError: it is not there, damaged, hostile, or holds what nothing here can read.
    """
    path = hub.local(asked, variant)
    pipeline = path.is_dir() and any((path / part).is_dir() for part in hub.PARTS)
    folders = [name for name in hub.PARTS if (path / name).is_dir()] if pipeline else [""]
    found: list[SourceNetwork] = []
    marks: Mapping[str, float | None] = {}
    metadata: Mapping[str, str] = {}
    for inside in folders:
        where = path / inside if inside else path
        if inside == "scheduler":
            continue
        settings = _settings(where)
        try:
            used = variant if sources.has_variant(where, variant) else None
            tensors = quantised.whole(sources.load(where, variant=used))
            if ignore:
                tensors = sources.Without(tensors, ignore)
            parts = recognise(tensors, settings)
        except (OSError, ValueError) as error:
            label, reason = f"{asked}/{inside}" if inside else asked, _first(error)
            named = reason.startswith(str(where))
            raise InputError(reason if named else f"{label}: {reason}") from None
        found += [SourceNetwork(asked, where, used, part, settings) for part in parts]
        if any(part.kind == "unet" for part in parts):
            marks = {name: _one(tensors[name]) for name in MARKS & set(tensors)}
            metadata = getattr(tensors, "metadata", {})
    return Checkpoint(asked, tuple(found), _scheduler(path), marks, metadata)


def _one(tensor: Any) -> float | None:
    """The number of a tensor that holds one."""
    array = as_numpy(tensor)
    return float(array.reshape(-1)[0]) if array.size == 1 else None


def _scheduler(path: Path) -> Mapping[str, Any] | None:
    """The settings of a pipeline's scheduler. Its class is what the pipeline's own index says."""
    settings = _json(path / _SCHEDULE)
    listed = (_json(path / _INDEX) or {}).get("scheduler")
    if settings is not None and isinstance(listed, list) and isinstance(listed[-1], str):
        return {**settings, "_class_name": listed[-1]}
    return settings


def _settings(where: Path) -> Mapping[str, Any]:
    """The config.json of a network's folder, {} where there is none."""
    if not where.is_dir() and not sources.is_named(where):
        return {}
    for name in _SETTINGS:
        settings = _json((where if where.is_dir() else where.parent) / name)
        if settings is not None:
            return settings
    return {}


def _json(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} is damaged: it is not a JSON object")
    return data


def _first(error: Exception) -> str:
    return str(error.strerror if isinstance(error, OSError) and error.strerror else error)
