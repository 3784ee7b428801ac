"""`--set path=value`: any leaf of a recipe's configuration, typed by what stands there."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from mv2_jax.errors import InputError
from mv2_jax.lookup import nearest


def leaves(cfg: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{'optim.lr': value} for every leaf; an empty mapping is a leaf that may be filled."""
    found: dict[str, Any] = {}
    for key in cfg:
        value = cfg[key]
        if isinstance(value, ConfigDict) and len(value):
            found.update(leaves(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def apply(recipe: ConfigDict, settings: Iterable[str]) -> None:
    """Changes `recipe` in place by settings such as "optim.lr=1e-4" or "vae.steps=10".

    A path that starts with a phase's name is meant for that phase; any other for every phase that
    has such a leaf.

    Raises:
        InputError: no '=', a path that no phase has (the nearest known one is named), or a value
            of another type than the leaf's. Nothing is changed then.
    """
    changes: list[tuple[ConfigDict, str, Any]] = []
    for setting in settings:
        path, sign, text = setting.partition("=")
        path = path.strip()
        if not sign or not path:
            raise InputError(f"--set {setting!r}: write it as NAME=VALUE, such as optim.lr=1e-4")
        for phase, leaf in _targets(recipe, path):
            changes.append((phase, leaf, _value(path, text.strip(), leaves(phase)[leaf])))
    for phase, leaf, value in changes:
        *branches, last = leaf.split(".")
        node = phase
        for key in branches:
            node = node[key]
        with node.ignore_type():
            node[last] = value


def _targets(recipe: ConfigDict, path: str) -> list[tuple[ConfigDict, str]]:
    """The (phase, leaf) pairs a path means. What a recipe packs is set like a phase, "pack"."""
    sections = {name: recipe.phases[name] for name in recipe.order}
    if "pack" in recipe:
        sections["pack"] = recipe.pack
    first, _, rest = path.partition(".")
    if first in sections and rest:
        phases, leaf = [sections[first]], rest
    else:
        phases, leaf = [recipe.phases[name] for name in recipe.order], path
    found = [(phase, leaf) for phase in phases if leaf in leaves(phase)]
    if not found:
        known = {known for phase in phases for known in leaves(phase)}
        raise InputError(f"--set {path}: there is no such setting{_near(leaf, known)}")
    return found


def _near(leaf: str, known: set[str]) -> str:
    """The nearest known path: by its last word where the rest is right, else by the whole."""
    branch = leaf.rpartition(".")[0]
    siblings = {k for k in known if k.rpartition(".")[0] == branch}
    return nearest(leaf, siblings) or nearest(leaf, known)


def _value(path: str, text: str, old: Any) -> Any:
    """`text` as the type of `old`."""
    kind = type(old)
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if kind is int:
            number = float(text)
            if number != int(number):
                raise ValueError(text)
            return int(number)
        if kind is float:
            return float(text)
        if kind is str:
            return text
        value = ast.literal_eval(text)
        if isinstance(old, (tuple, list)):
            value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
            if old and not all(_alike(item, old[0]) for item in value):
                raise ValueError(text)
        elif isinstance(old, ConfigDict) and not isinstance(value, dict):
            raise ValueError(text)
        return value
    except (ValueError, KeyError, SyntaxError, OverflowError):
        word = "mapping" if isinstance(old, ConfigDict) else kind.__name__
        raise InputError(f"--set {path}={text}: expected a value of type {word}") from None


def _alike(item: Any, example: Any) -> bool:
    if isinstance(example, float):
        return isinstance(item, (int, float)) and not isinstance(item, bool)
    return isinstance(item, type(example))
