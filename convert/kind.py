"""What a kind of network is to the converter: one value, in a file of its own under `kinds`.

    KIND = Kind(title="a VAE", serves="--vae, --t2i-vae", config=VAEConfig, find=find,
                target=targets.vae, layout=layout, compare="mv2_jax.convert.compare_networks:vae")

`kinds.KINDS` names every one, and every command loops over them: recognising a file, converting it,
writing it back, comparing it with PyTorch's. A new kind is a file and a row there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mv2_jax import lookup, params
from mv2_jax.convert import ldm
from mv2_jax.convert.engine import Table
from mv2_jax.convert.sources import View, spec


@dataclass(frozen=True)
class Part:
    """One network of a file.

    kind: a key of `kinds.KINDS`. title: what it is, and layout: in whose names, for a person.
    tensors: in the names that `table` reads. config: as its kind has it.
    """

    kind: str
    title: str
    layout: str
    tensors: Mapping[str, Any]
    table: Table
    config: Any


class Layout(NamedTuple):
    """How a component is published: its table, its file, and its config.json, if it has one."""

    table: Table
    file: str
    settings: dict[str, Any] | None


@dataclass(frozen=True)
class Kind:
    """A kind of network.

    title: for a person, with its article. serves: what it is given to `mv2 convert` as.
    find: its networks in a source (tensors, the config.json beside them or {}); raises InputError
    where one is there that cannot be read. config: the class of their configs.
    target: a config -> the tree to fill, as shapes; None where that depends on the UNet around it.
    layout: how a component (cascade folder, config) is written back; raises InputError where
    PyTorch's libraries have no such network. compare: names the function that runs it beside
    PyTorch's, as `module:name`, since that imports torch (see
    `compare_networks`).
    """

    title: str
    serves: str
    find: Callable[[Mapping[str, Any], Mapping[str, Any]], Iterable[Part]]
    config: type | tuple[type, ...] = ()
    target: Callable[[Any], params.Tree] | None = None
    layout: Callable[[Any, Any], Layout] | None = None
    compare: str = ""

    def comparison(self) -> Callable[..., Any]:
        """The function that `compare` names."""
        return lookup.find(self.compare, {}, "comparison")


def claim(source: Mapping[str, Any], names: Mapping[str, str], table: Table) -> View:
    """The tensors of {name in the table: name in the source} that some rule of the table reads."""
    regexes = [rule.source_regex for rule in table if hasattr(rule, "source_regex")]
    return View(
        source, {n: old for n, old in names.items() if any(r.fullmatch(n) for r in regexes)}
    )


def shapes(source: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """{name: its shape} of {name: name in the source}; nothing is read."""
    return {name: spec(source, old).shape for name, old in names.items()}


def below(source: Iterable[str], prefix: str) -> dict[str, str]:
    """{name without the prefix: name} of all that start with it."""
    return {name.removeprefix(prefix): name for name in source if name.startswith(prefix)}


def prefixes(source: Iterable[str], mark: str) -> list[str]:
    """What stands before `mark` where a name is, or ends in a dot and, that."""
    found = {name.removesuffix(mark) for name in source if name.endswith(mark)}
    return sorted(prefix for prefix in found if prefix == "" or prefix.endswith("."))


def translated(
    names: Mapping[str, str], modules: Callable[[Iterable[str]], Mapping[str, str]]
) -> dict[str, str]:
    """LDM's names in diffusers' words, as {name: name in the source}."""
    table = modules(names)
    return {ldm.renamed(name, table): old for name, old in names.items()}
