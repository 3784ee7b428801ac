"""Converts a flat set of named tensors into a parameter tree, by a table of rules.

A table says, for each source name, where in the tree its numbers go and how they are laid out
there. Nothing is left to chance: every source tensor is used once or ignored by a rule that says
why, every leaf of the target is filled once, every shape agrees. Any miss is a `ConversionError`
that lists the names, grouped. The same table read backwards exports a tree (`export`).

How rules are written is told in `convert.rules`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mv2_jax.convert.ops import as_numpy
from mv2_jax.convert.rules import (
    Fill,
    Ignore,
    Rule,
    Table,
    conv,
    dense,
    fill,
    fused,
    norm,
    under,
)
from mv2_jax.params import Tree, flatten, unflatten
from mv2_jax.tensorfile import Spec

__all__ = [
    "ConversionError",
    "Fill",
    "Ignore",
    "Rule",
    "Table",
    "check",
    "conv",
    "convert",
    "dense",
    "export",
    "exported",
    "fused",
    "norm",
    "shorten",
    "stored",
    "stream",
    "under",
]


class ConversionError(ValueError):
    """A source that does not fit a table and a target. The text lists what does not fit."""


def convert(
    source: Mapping[str, Any],
    table: Table,
    target: Mapping[str, Any],
    *,
    dtype: Any = None,
) -> Tree:
    """The target tree, filled from the source; NumPy arrays of the source's own types.

    Args:
        source: name -> array (NumPy, JAX or torch). It may load lazily: each is read once.
        target: a tree with `.shape` at its leaves, as `jax.eval_shape` of `init` gives it.
        dtype: cast floating-point tensors to this type; None keeps the stored one.

    Raises:
        ConversionError: names unknown, missing, claimed twice, shapes that differ, or values
            that are not finite. The text lists them all, grouped.
    """
    return unflatten(dict(stream(source, table, target, dtype=dtype)))


def stream(
    source: Mapping[str, Any], table: Table, target: Mapping[str, Any], *, dtype: Any = None
) -> Iterator[tuple[str, np.ndarray]]:
    """`convert` as (leaf name, array) pairs, one source tensor in memory at a time.

    Names are checked before the first pair; shapes and values as the tensors are read, and all
    that fail are reported together, after the last pair. Raises as `convert` does.
    """
    leaves, table = flatten(target), list(table)
    made = _made(table, leaves)
    steps = _plan(source, table, leaves, made)
    for name, array in made.items():
        yield name, array if dtype is None else array.astype(dtype)
    wrong: list[str] = []
    unfinite: list[str] = []
    for key, rule, names in steps:
        for name, part in _laid_out(key, as_numpy(source[key]), rule, names, leaves, wrong):
            # Half-precision types that NumPy lacks have the kind "V".
            floating = part.dtype.kind in "fV"
            if floating and not np.isfinite(part).all():
                unfinite.append(key)
            if dtype is not None and floating:
                part = part.astype(dtype)
            yield name, np.ascontiguousarray(part)
    _raise({"wrong shape": wrong, "not finite (NaN or infinity inside)": unfinite})


def check(shapes: Mapping[str, tuple[int, ...]], table: Table, target: Mapping[str, Any]) -> None:
    """Says whether tensors of these shapes would convert, without any of them.

    Raises:
        ConversionError: as `convert`, but for values.
    """
    stored({key: Spec(shape, np.dtype(np.float32)) for key, shape in shapes.items()}, table, target)


def stored(source: Mapping[str, Spec], table: Table, target: Mapping[str, Any]) -> dict[str, Spec]:
    """What `stream` would yield from tensors of these shapes and types: {leaf: shape and type}.

    Raises:
        ConversionError: as `convert`, but for values.
    """
    leaves, table = flatten(target), list(table)
    made = _made(table, leaves)
    known = {name: Spec(array.shape, array.dtype) for name, array in made.items()}
    wrong: list[str] = []
    for key, rule, names in _plan(source, table, leaves, made):
        hollow = np.broadcast_to(np.zeros((), source[key].dtype), source[key].shape)
        for name, part in _laid_out(key, hollow, rule, names, leaves, wrong):
            known[name] = Spec(part.shape, part.dtype)
    _raise({"wrong shape": wrong})
    return known


def export(tree: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
    """The source's names and layouts again, from a tree: the table read backwards.

    Where several rules can write a leaf, the first of the table does, so a table lists the layout
    to be exported first. `convert(export(tree, table), table, tree)` is the tree, bit for bit.

    Raises:
        ConversionError: leaves that no rule writes, or that the layout has no room for.
    """
    leaves = flatten(tree)
    out: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    for key, (rule, names) in exported(leaves, table).items():
        try:
            parts = [as_numpy(leaves[name]) for name in names]
            out[key] = np.ascontiguousarray(rule.operation.backward(*parts))
        except ValueError as error:
            wrong.append(f"{key}: {error}")
    _raise({"impossible in this layout": wrong})
    return out


def exported(leaves: Iterable[str], table: Table) -> dict[str, tuple[Rule, tuple[str, ...]]]:
    """{source name: (its rule, the leaves it is made of)} of every tensor of an export.

    Raises:
        ConversionError: leaves that no rule writes.
    """
    leaves = dict.fromkeys(leaves)
    rules = [rule for rule in table if isinstance(rule, Rule)]
    done: set[str] = set()
    out: dict[str, tuple[Rule, tuple[str, ...]]] = {}
    unknown: list[str] = []
    for name in leaves:
        if name in done:
            continue
        for key, rule, names in _writers(name, rules):
            if key not in out and all(n in leaves and n not in done for n in names):
                done.update(names)
                out[key] = rule, names
                break
        else:
            unknown.append(name)
    _raise({"no rule exports": unknown})
    return out


def shorten(names: Iterable[str], limit: int = 12) -> list[str]:
    """Names for reading: those that differ by numbers only share a line, long lists are cut."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[re.sub(r"\d+", "*", name)].append(name)
    lines = [
        members[0] if len(members) == 1 else f"{members[0]}  (and {len(members) - 1} like it)"
        for members in groups.values()
    ]
    if len(lines) > limit:
        rest = sum(len(members) for members in list(groups.values())[limit:])
        lines = [*lines[:limit], f"... and {rest} more"]
    return lines


def _made(table: list[Rule | Ignore | Fill], leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The leaves that the table's defaults make."""
    fills = [rule for rule in table if isinstance(rule, Fill)]
    return {
        name: as_numpy(default.make(tuple(leaf.shape)))
        for name, leaf in leaves.items()
        for default in fills
        if default.target_regex.fullmatch(name)
    }


def _plan(
    source: Iterable[str],
    table: list[Rule | Ignore | Fill],
    leaves: Mapping[str, Any],
    made: Iterable[str],
) -> list[tuple[str, Rule, tuple[str, ...]]]:
    """(source name, its rule, the leaves it fills) for all; raises where names do not fit."""
    steps: list[tuple[str, Rule, tuple[str, ...]]] = []
    filled: dict[str, str] = dict.fromkeys(made, "a default of the table")
    rules = [rule for rule in table if not isinstance(rule, Fill)]
    unknown, ambiguous, twice, nowhere = [], [], [], []
    for key in source:
        hits = [(rule, m) for rule in rules if (m := rule.source_regex.fullmatch(key))]
        if not hits:
            unknown.append(key)
            continue
        if len(hits) > 1:
            ambiguous.append(f"{key} by {' and '.join(repr(r.pattern) for r, _ in hits)}")
            continue
        rule, match = hits[0]
        if isinstance(rule, Ignore):
            continue
        names = tuple(fill(target, match.groupdict()) for target in rule.targets)
        for name in names:
            if name in filled:
                twice.append(f"{name} from {filled[name]} and from {key}")
            elif name not in leaves:
                nowhere.append(f"{key} -> {name}")
            filled[name] = key
        steps.append((key, rule, names))
    _raise(
        {
            "unknown in the source": unknown,
            "matched by several rules": ambiguous,
            "filled twice": twice,
            "without a place in the target": nowhere,
            "missing from the source (target leaves left empty)": [
                name for name in leaves if name not in filled
            ],
        }
    )
    return steps


def _laid_out(
    key: str,
    array: np.ndarray,
    rule: Rule,
    names: tuple[str, ...],
    leaves: Mapping[str, Any],
    wrong: list[str],
) -> Iterator[tuple[str, np.ndarray]]:
    """One source tensor as its leaves; what does not fit is told in `wrong` instead."""
    try:
        parts = rule.operation.forward(array)
    except ValueError as error:
        wrong.append(f"{key} {array.shape}: {error}")
        return
    for name, part in zip(names, parts, strict=True):
        expected = tuple(leaves[name].shape)
        if part.shape == expected:
            yield name, part
        else:
            wrong.append(f"{key} {array.shape} gives {part.shape}, {name} wants {expected}")


def _writers(name: str, rules: list[Rule]) -> Iterator[tuple[str, Rule, tuple[str, ...]]]:
    """(source name, rule, all leaves it needs) of each rule that could have filled `name`."""
    for rule in rules:
        for regex in rule.target_regexes:
            match = regex.fullmatch(name)
            if match and match.groupdict().keys() == rule.fields.keys():
                values = match.groupdict()
                names = tuple(fill(target, values) for target in rule.targets)
                yield fill(rule.pattern, values), rule, names


def _raise(problems: Mapping[str, list[str]]) -> None:
    """Raises ConversionError with every heading that has entries."""
    parts = [
        f"{len(names)} {heading}:\n" + "\n".join(f"  {line}" for line in shorten(names))
        for heading, names in problems.items()
        if names
    ]
    if parts:
        raise ConversionError("the source does not fit:\n" + "\n".join(parts))
