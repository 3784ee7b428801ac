"""The numbers of a generation: their flags, limits and defaults, in one table.

Each stage has its own (`--i2v-guidance`); some flags set the same number in two stages
(`--image-scale`). What the user does not say, the weights' own `defaults` do, and where they are
silent the table does. Nothing here imports JAX: `mv2 --help` reads this table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mv2_jax.config import nearest
from mv2_jax.errors import InputError

Numbers = dict[str, dict[str, float]]
"""{stage: {name: number}}, for instance {"t2i": {"steps": 25, "guidance": 7.5}}."""


@dataclass(frozen=True)
class Setting:
    """One number: its flag, the stages it belongs to, its name there, limits and default.

    A `default` of None is looked up in the stage's own config.
    """

    flag: str
    stages: tuple[str, ...]
    name: str
    kind: type
    low: float
    high: float
    default: float | None
    help: str

    @property
    def dest(self) -> str:
        """The flag's name in Python."""
        return self.flag.removeprefix("--").replace("-", "_")

    def parse(self, text: str | float) -> float:
        """The number a text (or a number) stands for.

        Raises:
            InputError: it is no number of this kind, or is out of range.
        """
        try:
            number = self.kind(text)
            sound = math.isfinite(number) and number == float(text)
        except (TypeError, ValueError, OverflowError):
            sound = False
        if not sound:
            kind = "a whole number" if self.kind is int else "a number"
            raise InputError(f"{self.flag} takes {kind}, not {text!r}")
        if not self.low <= number <= self.high:
            raise InputError(
                f"{self.flag} is {number:g}; it goes from {self.low:g} to {self.high:g}"
            )
        return number


_BOTH, _EVERY = ("i2v", "v2v"), ("t2i", "i2v", "v2v")
SETTINGS = (
    Setting("--t2i-steps", ("t2i",), "steps", int, 1, 1000, None, "denoising steps"),
    Setting("--i2v-steps", ("i2v",), "steps", int, 1, 1000, None, "denoising steps"),
    Setting("--v2v-steps", ("v2v",), "steps", int, 1, 1000, None, "denoising steps, were it all"),
    Setting("--t2i-guidance", ("t2i",), "guidance", float, 0, 100, 7.5, "how close to the text"),
    Setting("--i2v-guidance", ("i2v",), "guidance", float, 0, 100, 7.5, "how close to the text"),
    Setting("--v2v-guidance", ("v2v",), "guidance", float, 0, 100, 7.5, "how close to the text"),
    Setting(
        "--image-guidance", _BOTH, "image_guidance", float, 0, 100, 1.0, "how close to the picture"
    ),
    Setting(
        "--guidance-rescale", _EVERY, "guidance_rescale", float, 0, 1, 0.0, "how far a guided "
        "output is brought back to the spread of an unguided one",
    ),
    Setting(
        "--guidance-low", _EVERY, "guidance_low", float, 0, 1e6, 0.0, "guide only where there is "
        "so many times as much noise as signal, or more",
    ),
    Setting(
        "--guidance-high", _EVERY, "guidance_high", float, 0, 1e6, 0.0, "... or less (0: no bound)",
    ),
    Setting(
        "--noise-prior", ("i2v",), "noise_prior", float, 0, 1, 0.0, "how much of the picture the "
        "first noise holds",
    ),
    Setting(
        "--free-init", ("i2v",), "free_init", int, 0, 10, 0, "how often to begin again from the "
        "slow part of what came out (FreeInit)",
    ),
    Setting(
        "--image-scale", _BOTH, "image_scale", float, 0, 4, 1.0, "weight of the picture's look"
    ),
    Setting(
        "--control-scale", _BOTH, "control_scale", float, 0, 4, 1.0, "weight of its layout"
    ),
    Setting(
        "--v2v-strength", ("v2v",), "strength", float, 0, 1, 0.5, "how much to redraw: 0 keeps the "
        "keyframes",
    ),
    Setting("--between", ("vfi",), "between", int, 0, 15, 2, "frames put between two keyframes"),
    Setting("--fps", ("vfi",), "fps", float, 0.1, 240, 12, "frames a second of the video"),
)  # fmt: skip


def resolve(
    given: Mapping[str, Any], base: Mapping[str, Mapping[str, float]], bundle: Any
) -> Numbers:
    """Every number of every stage: from `given`, else `base`, else the weights, else the table.

    Args:
        given: flags by `Setting.dest`; None where the user said nothing.
        base: numbers of an earlier video, as its sidecar holds them, or {}.
        bundle: the weights (`mv2_jax.bundle.Bundle`).

    Raises:
        InputError: a number is out of range, or an unknown one is in `base` or the weights.
    """
    check_names(base, "the sidecar")
    check_names(bundle.defaults, f"defaults of {bundle.folder}")
    numbers: Numbers = {stage: {} for stage in ("t2i", "i2v", "v2v", "vfi")}
    for setting in SETTINGS:
        for stage in setting.stages:
            value = given.get(setting.dest)
            for source in (base, bundle.defaults):
                if value is None:
                    value = source.get(stage, {}).get(setting.name)
            if value is None:
                value = setting.default
            if value is None:
                value = getattr(bundle.stages[stage], setting.name)
            numbers[stage][setting.name] = setting.parse(value)
    return numbers


def check_names(numbers: Mapping[str, Mapping[str, float]], where: str) -> None:
    """Refuses a stage or a number the table does not have, naming the nearest one."""
    known: dict[str, list[str]] = {}
    for setting in SETTINGS:
        for stage in setting.stages:
            known.setdefault(stage, []).append(setting.name)
    for stage, values in numbers.items():
        if stage not in known:
            raise InputError(f"{where}: unknown stage {stage!r}{nearest(stage, known)}")
        for name in values:
            if name not in known[stage]:
                raise InputError(
                    f"{where}: {stage} has no setting {name!r}{nearest(name, known[stage])}"
                )


def idle(given: Mapping[str, Any], start: str) -> list[str]:
    """The flags that were given but set only stages before `start`, the first stage to run."""
    order = ("t2i", "i2v", "v2v", "vfi")
    skipped = order[: order.index(start)]
    return [
        setting.flag
        for setting in SETTINGS
        if given.get(setting.dest) is not None and set(setting.stages) <= set(skipped)
    ]
