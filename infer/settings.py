"""The numbers of a generation as flags: one table, made from the dataclasses of `mv2_jax.numbers`.

Some numbers each stage has a flag for (`--i2v-guidance`); others one flag sets in several stages
(`--image-scale`). What the user does not say, the weights do, and where they are silent
`mv2_jax.numbers` does. Nothing here imports JAX: `mv2 --help` reads this table.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mv2_jax import numbers as sets
from mv2_jax.number_kinds import About

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle

Numbers = dict[str, dict[str, float]]
"""{stage: {name: number}}, for instance {"t2i": {"steps": 25, "guidance": 7.5}}."""


@dataclass(frozen=True)
class Setting:
    """One flag: the stages it sets a number in, the number's name there, and what it is."""

    flag: str
    stages: tuple[str, ...]
    name: str
    about: About

    @property
    def dest(self) -> str:
        """The flag's name in Python."""
        return self.flag.removeprefix("--").replace("-", "_")

    def parse(self, text: Any) -> Any:
        """The value a text (or a value) stands for. Raises InputError as `About.check`."""
        return self.about.check(text, self.flag)

    def help(self, numbers: sets.Numbers) -> str:
        """Its line of `mv2 generate --help`: what it does, its default in `numbers`, its range."""
        stages = ", ".join(stage.upper() for stage in self.stages)
        return f"{stages}: {self.about.help} ({self.default(numbers)}; {self.about.range})"

    def default(self, numbers: sets.Numbers) -> str:
        """Its value in `numbers`, by stage where they differ."""
        found: dict[str, list[str]] = {}
        for stage in self.stages:
            value = getattr(numbers[stage], self.name)
            told = "the stage's" if value is None else self.about.show(value)
            found.setdefault(told, []).append(stage)
        if len(found) == 1:
            return next(iter(found))
        return ", ".join(f"{'/'.join(stages).upper()} {value}" for value, stages in found.items())


def shipped() -> sets.Numbers:
    """The numbers of the weights that ship, read without NumPy, for help texts."""
    index = json.loads((Path(sets.__file__).parent / "weights/toybox/cascade.json").read_text())
    numbers = sets.read(index["defaults"], "the shipped weights")
    for stage, config in index["stages"].items():
        if stage != "vfi" and numbers[stage].steps is None:
            numbers[stage] = sets.changed(stage, numbers[stage], {"steps": config["steps"]})
    return numbers


def _settings() -> Iterator[Setting]:
    shared: dict[str, tuple[About, list[str]]] = {}
    for stage in sets.STAGES:
        for name, about in sets.about(stage).items():
            if about.own_flag:
                yield Setting(f"--{stage}-{name.replace('_', '-')}", (stage,), name, about)
            else:
                shared.setdefault(name, (about, []))[1].append(stage)
    for name, (about, stages) in shared.items():
        yield Setting(f"--{name.replace('_', '-')}", tuple(stages), name, about)


SETTINGS = tuple(_settings())


def resolve(
    given: Mapping[str, Any], base: Mapping[str, Mapping[str, float]], bundle: Bundle
) -> Numbers:
    """Every number of every stage: from `given`, else `base`, else the weights.

    Args:
        given: flags by `Setting.dest`; None where the user said nothing.
        base: numbers of an earlier video, as its sidecar holds them, or {}.
        bundle: the weights (`mv2_jax.bundle.Bundle`).

    Raises:
        InputError: a number is out of range, or an unknown one is in `base` or the weights.
    """
    sets.check_stages(base, "the sidecar")
    made: Numbers = {}
    for stage, numbers in bundle.numbers.items():
        whole = sets.changed(stage, numbers, base.get(stage, {}), "the sidecar")
        made[stage] = dataclasses.asdict(whole)
        if made[stage].get("steps", 0) is None:
            made[stage]["steps"] = bundle.stages[stage].steps
    for setting in SETTINGS:
        if given.get(setting.dest) is not None:
            for stage in setting.stages:
                made[stage][setting.name] = setting.parse(given[setting.dest])
    return made


def idle(given: Mapping[str, Any], start: str) -> list[str]:
    """The flags that were given but set only stages before `start`, the first stage to run."""
    order = tuple(sets.STAGES)
    skipped = order[: order.index(start)]
    return [
        setting.flag
        for setting in SETTINGS
        if given.get(setting.dest) is not None and set(setting.stages) <= set(skipped)
    ]
