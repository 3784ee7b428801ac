"""Rules from source names to tree paths, and the templates they are written in.

Names are matched by templates: literal text with fields in braces.

    {i}              digits
    {side:down|up}   one of the words
    {x:*}            one part of a name (no '.' or '/')
    {x:**}           any text

A field means the same on both sides, so the target only names it:

    Rule("{side:down|up}_blocks.{i}.resnets.{j}.conv1.weight",
         "{side}_blocks_{i}/resnets_{j}/conv1/kernel", "conv")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mv2_jax.convert.ops import OPS, Op

_FIELD = re.compile(r"\{(\w+)(?::([^}]*))?\}")


@dataclass(frozen=True)
class Rule:
    """`pattern` (source template) -> `target` (tree template, or several for an op that splits).

    `op` is a name in `convert.ops.OPS`, or an `Op` of one's own.
    """

    pattern: str
    target: str | tuple[str, ...]
    op: str | Op = "copy"

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def operation(self) -> Op:
        return OPS[self.op] if isinstance(self.op, str) else self.op

    @cached_property
    def fields(self) -> dict[str, str]:
        """The constraint of each field, as the source template gives it."""
        return {name: kind for name, kind in _FIELD.findall(self.pattern)}

    @cached_property
    def source_regex(self) -> re.Pattern[str]:
        return _compile(self.pattern, self.fields)

    @cached_property
    def target_regexes(self) -> tuple[re.Pattern[str], ...]:
        return tuple(_compile(target, self.fields) for target in self.targets)


@dataclass(frozen=True)
class Ignore:
    """Source tensors that are left out on purpose; `why` tells a reader."""

    pattern: str
    why: str

    @cached_property
    def source_regex(self) -> re.Pattern[str]:
        return _compile(self.pattern, dict(_FIELD.findall(self.pattern)))


@dataclass(frozen=True)
class Fill:
    """Leaves (a tree template) that the source lacks: `make` gives their values for a shape.

    A source that fills such a leaf all the same is an error, so a default never hides a tensor.
    """

    target: str
    make: Callable[[tuple[int, ...]], Any]

    @cached_property
    def target_regex(self) -> re.Pattern[str]:
        return _compile(self.target, dict(_FIELD.findall(self.target)))


Table = Iterable[Rule | Ignore | Fill]


def dense(source: str, target: str, *, bias: bool = True, op: str | Op = "linear") -> list[Rule]:
    """Rules of a layer with `weight` and `bias`: a linear one, or by `op` a convolution."""
    rules = [Rule(f"{source}.weight", f"{target}/kernel", op)]
    return rules + ([Rule(f"{source}.bias", f"{target}/bias")] if bias else [])


def conv(source: str, target: str, *, bias: bool = True) -> list[Rule]:
    """Rules of a 2-D convolution."""
    return dense(source, target, bias=bias, op="conv")


def fused(source: str, target: str) -> list[Rule]:
    """torch's MultiheadAttention: queries, keys and values in one matrix."""
    stacked = [
        Rule(
            f"{source}.in_proj_{kind}",
            tuple(f"{target}/{letter}_proj/{leaf}" for letter in "qkv"),
            "split_qkv",
        )
        for kind, leaf in (("weight", "kernel"), ("bias", "bias"))
    ]
    return [*stacked, *dense(f"{source}.out_proj", f"{target}/out_proj")]


def norm(source: str, target: str) -> list[Rule]:
    """Rules of a normalisation: `weight` becomes `scale`."""
    return [Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")]


def under(table: Table, source: str = "", target: str = "") -> list[Rule | Ignore | Fill]:
    """The table with text put before every source and every target template.

    It sets a network's table inside a larger file ("ip_adapter.") or tree ("unet/").
    """
    moved: list[Rule | Ignore | Fill] = []
    for rule in table:
        if isinstance(rule, Rule):
            targets = tuple(target + name for name in rule.targets)
            rule = Rule(source + rule.pattern, targets, rule.op)
        elif isinstance(rule, Ignore):
            rule = Ignore(source + rule.pattern, rule.why)
        else:
            rule = Fill(target + rule.target, rule.make)
        moved.append(rule)
    return moved


def _compile(template: str, fields: Mapping[str, str]) -> re.Pattern[str]:
    out, position, seen = "", 0, set()
    for match in _FIELD.finditer(template):
        name = match[1]
        if name not in fields:
            raise ValueError(f"{template!r} names field {name!r}, which its source does not have")
        out += re.escape(template[position : match.start()])
        out += f"(?P={name})" if name in seen else f"(?P<{name}>{_regex(fields[name])})"
        seen.add(name)
        position = match.end()
    return re.compile(out + re.escape(template[position:]))


def _regex(kind: str) -> str:
    special = {"": r"\d+", "*": r"[^./]+", "**": r".+"}
    return special.get(kind) or "|".join(re.escape(word) for word in kind.split("|"))


def fill(template: str, values: Mapping[str, str]) -> str:
    """The text of a template with its fields' values."""
    return _FIELD.sub(lambda match: values[match[1]], template)
