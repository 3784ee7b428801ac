"""`mv2 generate --lora`: LoRAs merged into the networks of a cascade when they are loaded.

The folder stays as it is. `mv2 convert --lora` merges for good.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mv2_jax import files
from mv2_jax.errors import InputError

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle
    from mv2_jax.cascade import Cascade
    from mv2_jax.convert.checkpoint import SourceNetwork
    from mv2_jax.convert.lora_layers import Changes, Layers


@dataclass(frozen=True)
class Lora:
    """A LoRA's file with the SHA-256 of its bytes, how much of it is merged, into which stages
    (none: all)."""

    path: str
    sha256: str
    weight: float = 1.0
    stages: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As a sidecar has it."""
        return {"file": self.path, "sha256": self.sha256, "weight": self.weight,
                "stages": list(self.stages)}  # fmt: skip


def given(said: Sequence[str]) -> tuple[Lora, ...]:
    """The LoRAs of `--lora FILE[:W][@STAGES]`.

    Raises:
        InputError: a file that cannot be read, or a weight that is no number.
    """
    from mv2_jax.convert.cli import placed

    made = []
    for text in said:
        try:
            path, weight, stages = placed(text)
        except argparse.ArgumentTypeError as error:
            raise InputError(f"--lora {error}") from None
        made.append(_opened(path, weight, stages))
    return tuple(made)


def kept(entries: Sequence[Mapping[str, Any]]) -> tuple[Lora, ...]:
    """The LoRAs that a sidecar names. Raises InputError where a file cannot be read."""
    return tuple(_opened(e["file"], float(e["weight"]), tuple(e["stages"])) for e in entries)


def is_kept(value: Any) -> bool:
    """Whether a sidecar's entry is of the right kind."""
    keys = {"file": str, "sha256": str, "weight": int | float, "stages": list}
    return isinstance(value, list) and all(
        isinstance(entry, Mapping)
        and all(isinstance(entry.get(key), kind) for key, kind in keys.items())
        for entry in value
    )


def _opened(path: str, weight: float, stages: tuple[str, ...]) -> Lora:
    where = Path(path).absolute()
    try:
        return Lora(str(where), files.sha256(where), weight, stages)
    except OSError as error:
        reason = (error.strerror or "error").lower()
        raise InputError(f"--lora: cannot read {where}: {reason}") from None


def _found(lora: Lora) -> SourceNetwork:
    from mv2_jax.convert.checkpoint import open_checkpoint

    found = open_checkpoint(lora.path).found
    if found[0].part.kind not in ("lora", "motion_lora"):
        raise InputError(f"--lora {lora.path}: it holds {found[0].part.title}, not a LoRA")
    return found[0]


class Merged:
    """What LoRAs change in a cascade folder: found when it is made, merged by `into`.

    `notes` are lines on what is left out.

    Raises:
        InputError: a file that is no LoRA, or that fits no network of the folder.
    """

    def __init__(self, bundle: Bundle, loras: Sequence[Lora]) -> None:
        from mv2_jax.convert.lora_merge import fitted

        self.bundle = bundle
        self.notes: list[str] = []
        # Component -> the one of the folder that it is read from, and what is added to its leaves.
        self._sources = {name: name for name in bundle.components}
        self._changes: dict[str, list[Changes]] = {}
        for lora in loras:
            found = _found(lora)
            if lora.stages and found.part.kind == "lora":
                self._tell_apart()
            changes, absent = fitted(found, lora.weight, lora.stages, self._layers())
            for name, leaves in changes.items():
                self._changes.setdefault(name, []).append(leaves)
            if absent:
                more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
                self.notes.append(f"{lora.path}: no such layer, left out: {absent[0]}{more}")

    def _tell_apart(self) -> None:
        """Gives T2I networks of its own, where it shares those of the video stages."""
        from mv2_jax.bundle import PICTURE

        if PICTURE["spatial"] in self._sources:
            return
        for name, own in PICTURE.items():
            if name in self._sources and name != "vae":
                self._sources[own] = self._sources[name]
                if name in self._changes:
                    self._changes[own] = list(self._changes[name])

    def _layers(self) -> dict[str, Callable[[], Layers]]:
        from mv2_jax.convert import kinds

        made = {}
        for name, source in self._sources.items():
            kind = kinds.of(self.bundle.config(source))
            if kind is not None and kind.layers is not None:
                made[name] = partial(self._listed, kind.layers, source)
        return made

    def _listed(self, layers: Callable[..., Layers], source: str) -> Layers:
        from mv2_jax.components import stored

        return layers(self.bundle.config(source), stored(self.bundle, source))

    def into(self, cascade: Cascade) -> Cascade:
        """The loaded cascade with the LoRAs merged, in fp32, into what they change."""
        import dataclasses

        from mv2_jax import components

        names = {*self._changes, *(self._sources.keys() - self.bundle.components.keys())}
        makers = {name: partial(self._made, name, cascade) for name in sorted(names)}
        held = components.made_by(cascade.params, makers)
        return dataclasses.replace(cascade, params=held)

    def _made(self, name: str, cascade: Cascade) -> Any:
        from mv2_jax import components, params
        from mv2_jax.convert import lora_layers

        source = self._sources[name]
        pairs: Any = params.flatten(self.bundle.load(source)).items()
        for changes in self._changes.get(name, ()):
            pairs = lora_layers.changed(pairs, changes)
        rules = self.bundle.components[source].rules
        tree = params.unflatten(dict(pairs))
        return components.placed(tree, cascade.dtype, cascade.programs.mesh, rules)
