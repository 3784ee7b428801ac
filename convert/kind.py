"""What a kind of network is to the converter: one value, in a file of its own under `kinds`.

    KIND = Kind(title="a VAE", serves="--vae, --t2i-vae", config=VAEConfig, find=find,
                target=targets.vae, layout=layout, fits=fits, torch=Torch(...))

`kinds.KINDS` names every one, and every command loops over them: recognising a file, fitting it to
the others, converting it, writing it back, comparing it with PyTorch's. A new kind is a file and a
row there, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mv2_jax import params
from mv2_jax.config import UNetConfig
from mv2_jax.convert import ldm
from mv2_jax.convert.engine import Table
from mv2_jax.convert.sources import View, spec
from mv2_jax.errors import InputError


@dataclass(frozen=True)
class FileNetwork:
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


Part = FileNetwork  # its name until 0.2, which kinds from outside the package may import


class Layout(NamedTuple):
    """How a component is published: its table, its file, and its config.json, if it has one."""

    table: Table
    file: str
    settings: dict[str, Any] | None


def _unsaid(cfg: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Torch:
    """How PyTorch's libraries have a kind of network, for `mv2 verify`. What imports them is named,
    as `module:name`, and imported when it is wanted.

    compare: runs it beside theirs (see `compare_networks`).
    published: (config, the UNet around it) -> its class there, and the settings of that class.
    unsaid: a config -> settings that no tensor's shape says, as the publishers' own configs have
        them.
    converters: by a part's layout, names of (its tensors by their names in the source, the part) ->
        them in the library's names; parts of other layouts have those already.
    config: of transformers' networks the class of their settings, and half, what a config.json of
        both encoders calls theirs; "" of diffusers'.
    expected: a job (`compare_networks.Job`) -> fields of the config that no output shows.
    prefixes: a config -> what LoRAs put before its modules' names, kohya's first.
    """

    compare: str
    published: Callable[[Any, UNetConfig], tuple[str, dict[str, Any]]] | None = None
    unsaid: Callable[[Any], dict[str, Any]] = _unsaid
    converters: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    half: str = ""
    expected: Callable[[Any], dict[str, Any]] = _unsaid
    prefixes: Callable[[Any], tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of network.

    title: for a person, with its article. serves: what it is given to `mv2 convert` as.
    find: its networks in a source (tensors, the config.json beside them or {}); raises InputError
        where one is there that cannot be read. config: the class of their configs.
    fills: the kind in whose place it may stand too ("controlnet"), for flags that take either.
    whole: of a kind that is nothing by itself: (its part, the networks so far, by component) -> the
        part with the tensors, table and config that both make together. None: it is whole.
    target: a config -> the tree to fill, as shapes; None where that depends on the UNet around it.
    fits: (component, its `pending.PendingNetwork`, those of all components) -> raises InputError
        where what they hand to one another does not fit.
    layers: (config, tree) -> the layers that LoRAs change (`lora_layers.Layers`).
    layout: how a component (cascade folder, config) is written back; raises InputError where
        PyTorch's libraries have no such network.
    torch: None where they have none at all.
    """

    title: str
    serves: str
    find: Callable[[Mapping[str, Any], Mapping[str, Any]], Iterable[FileNetwork]]
    config: type | tuple[type, ...] = ()
    fills: str = ""
    whole: Callable[[FileNetwork, Mapping[str, Any]], FileNetwork] | None = None
    target: Callable[[Any], params.Tree] | None = None
    fits: Callable[[str, Any, Mapping[str, Any]], None] | None = None
    layers: Callable[[Any, params.Tree], Any] | None = None
    layout: Callable[[Any, Any], Layout] | None = None
    torch: Torch | None = None


def same(network: Any, ours: Any, theirs: Any, what: str, other: str) -> None:
    """Refuses a network that hands something else than another takes; both are named.

    Args:
        what: what it hands: "latent channels". other: who takes it: "the UNet".
    """
    if ours != theirs:
        raise InputError(
            f"{network.found.asked} ({network.found.part.title}) does not fit {other}: "
            f"{what} {ours}, not {theirs}"
        )


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
