"""The kinds of numbers that a stage takes: what one is, its limits, and how it is read and shown.

Most are plain numbers (`About`); some are one for each ControlNet (`Each`), or go by frames
(`FrameWeights`), or are sizes (`Size`) or words (`Word`). Nothing here imports JAX.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mv2_jax.errors import InputError
from mv2_jax.lookup import nearest


@dataclass(frozen=True)
class About:
    """What a number is: its kind, limits, a few words, and whether each stage has a flag for it."""

    kind: type
    low: float
    high: float
    help: str
    own_flag: bool = False

    @property
    def metavar(self) -> str:
        """What stands for a value in help texts."""
        return "N"

    @property
    def range(self) -> str:
        """What may be given, for help texts."""
        return f"{self.low:g} to {self.high:g}"

    def show(self, value: Any) -> str:
        """A value as a user would write it."""
        return f"{value:g}"

    def check(self, value: Any, name: str) -> Any:
        """The number that a value stands for.

        Raises:
            InputError: it is no number of this kind, or is out of range; `name` is what it is of.
        """
        try:
            number = self.kind(value)
            if not math.isfinite(number) or number != float(value):
                number = None
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None:
            kind = "a whole number" if self.kind is int else "a number"
            raise InputError(f"{name} takes {kind}, not {value!r}")
        if not self.low <= number <= self.high:
            raise InputError(f"{name} is {number:g}; it goes from {self.low:g} to {self.high:g}")
        return number


class Size(About):
    """Two numbers of pixels, "1024x768"; "" is what it would be anyway."""

    @property
    def metavar(self) -> str:
        return "WxH"

    @property
    def range(self) -> str:
        return "such as 1024x768"

    def show(self, value: Any) -> str:
        return value or "the stage's"

    def check(self, value: Any, name: str) -> str:
        """Raises InputError where it is not that."""
        parts = str(value).strip().lower().split("x")
        if not value:
            return ""
        if len(parts) != 2 or not all(part.isdecimal() and len(part) < 7 for part in parts):
            raise InputError(f"{name} takes two numbers of pixels, such as 1024x768, not {value!r}")
        return "x".join(str(int(part)) for part in parts)


class Each(About):
    """A number, or one for each ControlNet: "0.8,0.5", or a sequence."""

    @property
    def metavar(self) -> str:
        return "N[,N]"

    def show(self, value: Any) -> str:
        return ",".join(f"{each:g}" for each in several(value))

    def check(self, value: Any, name: str) -> Any:
        """A number, or a tuple of them. Raises InputError as `About.check`."""
        parts = value.split(",") if isinstance(value, str) else several(value)
        checked = tuple(super(Each, self).check(part, name) for part in parts)
        return checked[0] if len(checked) == 1 else checked


class FrameWeights(About):
    """Weights of frames, "0:1, 8:0.5": straight lines between those that are named, and the first
    and last of them beyond. For several ControlNets with ";" between. "" is 1 throughout."""

    @property
    def metavar(self) -> str:
        return "FRAME:N,..."

    @property
    def range(self) -> str:
        return "such as 0:1,8:0"

    def show(self, value: Any) -> str:
        return value or "1 for all"

    def check(self, value: Any, name: str) -> str:
        """The text, spelled one way; a mapping {frame: weight} will do too.

        Raises:
            InputError: it is no such list, or a weight is out of range.
        """
        if isinstance(value, Mapping):
            value = ",".join(f"{frame}:{weight}" for frame, weight in value.items())
        if not isinstance(value, str):
            raise InputError(f"{name} takes FRAME:WEIGHT,..., not {value!r}")
        return ";".join(self._checked(part, name) for part in value.split(";"))

    def _checked(self, text: str, name: str) -> str:
        points = {}
        for pair in filter(str.strip, text.split(",")):
            frame, colon, weight = pair.partition(":")
            if not colon or not frame.strip().isdecimal() or len(frame.strip()) > 6:
                raise InputError(f"{name} takes FRAME:WEIGHT,..., not {pair.strip()!r}")
            points[int(frame)] = super().check(weight, name)
        return ",".join(f"{frame}:{points[frame]:g}" for frame in sorted(points))


@dataclass(frozen=True)
class Word(About):
    """One of some words, or one for each ControlNet with commas between."""

    known: tuple[str, ...] = ()

    @property
    def metavar(self) -> str:
        return "NAME"

    @property
    def range(self) -> str:
        return ", ".join(self.known)

    def show(self, value: Any) -> str:
        return value

    def check(self, value: Any, name: str) -> str:
        """Raises InputError for another word; the nearest is named."""
        words = [word.strip() for word in str(value).split(",")]
        for word in words:
            if word not in self.known:
                hint = nearest(word, self.known) or f" ({self.range})"
                raise InputError(f"{name}: unknown {word!r}{hint}")
        return ",".join(words)


def several(value: Any) -> tuple[Any, ...]:
    """A number, or a sequence of them, as a tuple."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def curves(text: str, frames: int) -> list[list[float]]:
    """The weights of each of so many frames by a checked `FrameWeights`, a list a ControlNet."""
    made = []
    for part in text.split(";"):
        pairs = [pair.split(":") for pair in part.split(",") if pair]
        points = [(int(frame), float(weight)) for frame, weight in pairs] or [(0, 1.0)]
        made.append([_between(points, frame) for frame in range(frames)])
    return made


def _between(points: list[tuple[int, float]], frame: int) -> float:
    """The weight at a frame, of rising (frame, weight) points."""
    if frame <= points[0][0]:
        return points[0][1]
    for (a, low), (b, high) in itertools.pairwise(points):
        if frame <= b:
            return low + (high - low) * (frame - a) / (b - a)
    return points[-1][1]
