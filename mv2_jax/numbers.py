"""The numbers of a generation, a frozen dataclass a stage: their defaults, limits and words.

A cascade folder stores those that its weights like best; `Cascade`'s methods, `mv2 generate`, its
help and sidecars all read them from here. Each is traced (or a count of steps or frames), so that
a user may vary it from call to call. Nothing here imports JAX.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
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

    def check(self, value: Any, name: str) -> float:
        """The number that a value stands for.

        Raises:
            InputError: it is no number of this kind, or is out of range; `name` is what it is of.
        """
        try:
            number = self.kind(value)
            sound = math.isfinite(number) and number == float(value)
        except (TypeError, ValueError, OverflowError):
            sound = False
        if not sound:
            kind = "a whole number" if self.kind is int else "a number"
            raise InputError(f"{name} takes {kind}, not {value!r}")
        if not self.low <= number <= self.high:
            raise InputError(f"{name} is {number:g}; it goes from {self.low:g} to {self.high:g}")
        return number


def _number(default: Any, kind: type, low: float, high: float, words: str, **more: Any) -> Any:
    return dataclasses.field(
        default=default, metadata={"about": About(kind, low, high, words, **more)}
    )


@dataclass(frozen=True)
class Guided:
    """What every diffusion stage has. `steps` None: as many as its config says."""

    steps: int | None = _number(
        None, int, 1, 1000, "denoising steps of a whole chain", own_flag=True
    )
    guidance: float = _number(7.5, float, 0, 100, "how close to the text", own_flag=True)
    guidance_rescale: float = _number(
        0.0, float, 0, 1, "how far a guided output is brought back to the spread of an unguided one"
    )
    guidance_low: float = _number(
        0.0,
        float,
        0,
        1e6,
        "guide only where there is so many times as much noise as signal, or more",
    )
    guidance_high: float = _number(0.0, float, 0, 1e6, "... or less (0: no bound)")


@dataclass(frozen=True)
class Pictured(Guided):
    """What the video stages have beside."""

    image_guidance: float = _number(1.0, float, 0, 100, "how close to the picture")
    image_scale: float = _number(1.0, float, 0, 4, "weight of the picture's look")
    control_scale: float = _number(1.0, float, 0, 4, "weight of its layout")


@dataclass(frozen=True)
class T2I(Guided):
    """The picture's."""


@dataclass(frozen=True)
class I2V(Pictured):
    """The keyframes'."""

    noise_prior: float = _number(0.0, float, 0, 1, "how much of the picture the first noise holds")
    free_init: int = _number(
        0, int, 0, 10, "how often to begin again from the slow part of what came out (FreeInit)"
    )


@dataclass(frozen=True)
class V2V(Pictured):
    """The refined clip's."""

    strength: float = _number(
        0.5, float, 0, 1, "how much to redraw: 0 keeps the keyframes", own_flag=True
    )


@dataclass(frozen=True)
class VFI:
    """The smooth video's."""

    between: int = _number(2, int, 0, 15, "frames put between two keyframes")
    fps: float = _number(12.0, float, 0.1, 240, "frames a second of the video")


STAGES: dict[str, type] = {"t2i": T2I, "i2v": I2V, "v2v": V2V, "vfi": VFI}
Numbers = dict[str, Any]
"""{stage: its dataclass}."""


def about(stage: str) -> dict[str, About]:
    """What a stage's numbers are, by name."""
    return {f.name: f.metadata["about"] for f in dataclasses.fields(STAGES[stage])}


def changed(stage: str, numbers: Any, changes: Mapping[str, Any], where: str = "") -> Any:
    """The dataclass with some numbers changed; None leaves one as it is.

    Args:
        where: what the changes are of, for the errors.

    Raises:
        InputError: a name that the stage does not have (the nearest is named), or a number of
            another kind or out of range.
    """
    known, made = about(stage), {}
    prefix = f"{where}: " if where else ""
    for name, value in changes.items():
        if name not in known:
            raise InputError(f"{prefix}{stage} has no setting {name!r}{nearest(name, known)}")
        if value is not None:
            made[name] = known[name].check(value, f"{prefix}{stage} {name}")
    return dataclasses.replace(numbers, **made)


def read(stored: Mapping[str, Mapping[str, Any]], where: str) -> Numbers:
    """Every stage's numbers, from those that a cascade folder stores.

    Raises:
        InputError: as `changed`, or a stage that there is not.
    """
    check_stages(stored, where)
    return {
        stage: changed(stage, cls(), stored.get(stage, {}), where) for stage, cls in STAGES.items()
    }


def check_stages(stored: Iterable[str], where: str) -> None:
    """Raises InputError for a stage that there is not; the nearest is named."""
    for stage in stored:
        if stage not in STAGES:
            raise InputError(f"{where}: unknown stage {stage!r}{nearest(stage, STAGES)}")


def usual() -> Numbers:
    """Every stage's numbers where no weights say otherwise."""
    return read({}, "")
