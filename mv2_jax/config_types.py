"""Do values fit a config's fields? JSON from elsewhere may hold anything."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

_LARGEST = 2**31
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def check(cls: type, values: dict[str, Any]) -> None:
    """Raises ValueError, with the field's name, where a value is not of its field's type.

    Whole numbers are from 0 to 2**31, others finite; what a field's annotation does not say in
    these terms is taken as it is.
    """
    hints = _hints(cls)
    for name, value in values.items():
        if name in hints and not _fits(hints[name], value):
            raise ValueError(
                f"{cls.__name__}.{name} is {_short(value)}; it is {_said(hints[name])}"
            )


def check_numbers(defaults: Mapping[str, Any]) -> None:
    """Raises ValueError unless every stage's defaults are finite numbers, lists of them, or words,
    by name; `numbers.read` knows which."""
    for stage, numbers in defaults.items():
        for key, value in numbers.items():
            several = tuple(value) if isinstance(value, list) else (value,)
            if not all(_fits(float | str, each) for each in several):
                raise ValueError(f"defaults: {stage}.{key} is {_short(value)}, and takes a number")


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError):  # a class from elsewhere, with names that are not at hand
        return {}


def _fits(hint: Any, value: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(part, value) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[-1:] == (Ellipsis,):
            return all(_fits(parts[0], each) for each in value)
        return len(value) == len(parts) and all(map(_fits, parts, value))
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and abs(value) < _LARGEST and math.isfinite(value)
    if hint is type(None):
        return value is None
    if isinstance(hint, type) and (hint is str or dataclasses.is_dataclass(hint)):
        return isinstance(value, hint)
    return True


def _said(hint: Any) -> str:
    parts = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(_said, parts))
    if typing.get_origin(hint) is tuple:
        if parts[-1:] == (Ellipsis,):
            return f"a list, each {_said(parts[0])}"
        return f"a list of {len(parts)}, each {_said(parts[0])}"
    if hint is type(None):
        return "null"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
