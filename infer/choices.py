"""What a user chooses beside numbers: samplers, frames, presets; each another compiled program.

Nothing here imports JAX: `mv2 --help` reads this table. A choice changes a stage's config, where a
number of `settings` is handed to the stage. Only what was chosen is kept, in the sidecar too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mv2_jax import lookup
from mv2_jax.config import ScheduleConfig, SparseControlConfig
from mv2_jax.configs import presets
from mv2_jax.configs.few_steps import FEW_STEPS, few
from mv2_jax.diffusion.names import CONTEXTS, RULES, SAMPLERS, SPACINGS
from mv2_jax.errors import InputError
from mv2_jax.infer import interpolators
from mv2_jax.lookup import nearest
from mv2_jax.numbers import DIFFUSION

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle

Choices = dict[str, dict[str, Any]]
"""{stage: {name: value}}, for instance {"i2v": {"sampler": "euler"}}; "all" is every stage."""


@dataclass(frozen=True)
class Choice:
    """One choice: its flag, the stages it belongs to, its name there, and what may be chosen.

    `known` are words, or the (lowest, highest) of a whole number. Where `files` is true, a file
    is as good as a word, and several of either may be joined by "+". Where `own` is true, so is
    `module:name` of one's own.
    """

    flag: str
    stages: tuple[str, ...]
    name: str
    known: tuple[str, ...] | tuple[int, int]
    help: str
    files: bool = False
    own: bool = False

    @property
    def command_help(self) -> str:
        """Its help, with what only a command line may say."""
        also = ["a file of weights"] * self.files + ["your own module:name"] * self.own
        return f"{self.help}; or {', '.join(also)}" if also else self.help

    @property
    def dest(self) -> str:
        """The flag's name in Python."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def metavar(self) -> str:
        """What stands for the value in a help text."""
        return "NAME" if isinstance(self.known[0], str) else "N"

    @property
    def range(self) -> str:
        """What may be given of a whole number, for a help text."""
        return "" if isinstance(self.known[0], str) else f"; {self.known[0]} to {self.known[1]}"

    def parse(self, value: Any) -> Any:
        """The choice that a text (or a sidecar's value) stands for.

        Raises:
            InputError: it is not among what is known.
        """
        if isinstance(self.known[0], str):
            if self.files and self.own and interpolators.is_outside(str(value)):
                return value
            if self.files and Path(str(value)).is_file():
                return str(Path(value).absolute())
            if self.files and "+" in str(value):
                return "+".join(self.parse(part) for part in str(value).split("+"))
            if self.files and Path(str(value)).suffix:
                raise InputError(f"{self.flag}: cannot read {value}: no such file")
            if self.own and not self.files:
                try:
                    return lookup.known(value, self.known, self.name)
                except InputError as error:
                    raise InputError(f"{self.flag}: {error}") from None
            return lookup.one_of(value, self.known, self.name, self.flag)
        low, high = self.known
        number = str(value).strip()
        if not number.isdecimal() or not low <= int(number) <= high:
            raise InputError(f"{self.flag} takes a whole number from {low} to {high}, not {value}")
        return int(number)


_VIDEO = ("i2v", "v2v")
CHOICES = (
    Choice("--preset", ("all",), "preset", tuple(presets.PRESETS), "the sizes and frame counts "
           "of a full-size cascade: " + ", ".join(presets.PRESETS)),
    *(
        Choice(f"--{stage}-sampler", (stage,), "sampler", tuple(SAMPLERS), "one of "
               + ", ".join(SAMPLERS), own=True)
        for stage in DIFFUSION
    ),
    Choice("--spacing", DIFFUSION, "spacing", SPACINGS, "spacing of the timesteps: " +
           ", ".join(SPACINGS) + " (Karras samplers, lcm and tcd have their own)"),
    Choice("--steps-offset", DIFFUSION, "steps_offset", (0, 999), "added to the timesteps of "
           "--spacing leading (the weights': mostly 1)"),
    Choice("--few-steps", _VIDEO, "few_steps", tuple(FEW_STEPS), "sampling of distilled motion "
           "modules: " + ", ".join(FEW_STEPS)),
    Choice("--guidance-rule", DIFFUSION, "rule", tuple(RULES), "what guidance steers away "
           "from: none (no guidance); text (the negative prompt); public (the negative prompt and "
           "an empty picture, with the ControlNet in both rows, as in diffusers' pipelines); apart "
           "(picture and text, a scale each)", own=True),
    Choice("--frames", _VIDEO, "frames", (1, 1024), "number of keyframes (the weights'); more "
           "than the motion modules were trained for are sampled in overlapping windows"),
    Choice("--windows", _VIDEO, "context", CONTEXTS, "how windows are placed, as in ComfyUI's "
           "AnimateDiff-Evolved: static; uniform (they move from step to step); looped (they also "
           "wrap around the end); closed (the video is a closed loop)"),
    Choice("--window", _VIDEO, "window", (1, 1024), "frames of a window (as many as the motion "
           "modules were trained for; with --windows at most 16)"),
    Choice("--overlap", _VIDEO, "overlap", (0, 1023), "frames shared by two windows (a quarter)"),
    Choice("--fuse", _VIDEO, "blend", ("pyramid", "flat"), "weights of the frames of a window: "
           "pyramid (highest in the middle), flat"),
    Choice("--vae-tile", DIFFUSION, "tile", (0, 8192), "run the autoencoder in tiles of N pixels a "
           "side, to save memory (0: no tiles)"),
    Choice("--clip-skip", DIFFUSION, "clip_skip", (0, 47), "skip the last N layers of the text "
           "encoder (the weights'); 1 is the web UI's 2"),
    Choice("--vfi", ("vfi",), "network", interpolators.NAMES, "the interpolator: rife; best, at "
           "three times its cost; ema, gan; A+B is the mean of both; none shows only the keyframes,"
           " in the same time", files=True, own=True),
)  # fmt: skip


def given(args: Any) -> Choices:
    """What parsed command-line arguments choose. Raises InputError where a choice is unknown."""
    made: Choices = {}
    for choice in CHOICES:
        value = getattr(args, choice.dest, None)
        if value is not None:
            for stage in choice.stages:
                made.setdefault(stage, {})[choice.name] = choice.parse(value)
    return made


def checked(old: Mapping[str, Mapping[str, Any]], where: str) -> Choices:
    """A sidecar's choices. Raises InputError where there is no such choice or value."""
    known = {(stage, choice.name): choice for choice in CHOICES for stage in choice.stages}
    made: Choices = {}
    for stage, values in old.items():
        for name, value in values.items():
            if (stage, name) not in known:
                names = [other for at, other in known if at == stage]
                raise InputError(f"{where}: {stage} has no choice {name!r}{nearest(name, names)}")
            made.setdefault(stage, {})[name] = known[stage, name].parse(value)
    return made


def merged(old: Choices, new: Choices) -> Choices:
    """Both, the new ones first."""
    return {stage: {**old.get(stage, {}), **new.get(stage, {})} for stage in {**old, **new}}


def idle(chosen: Choices, start: str) -> list[str]:
    """The flags that were given but choose only for stages before `start`."""
    skipped = DIFFUSION[: DIFFUSION.index(start)]
    return [
        choice.flag
        for choice in CHOICES
        if set(choice.stages) <= set(skipped)
        and any(choice.name in chosen.get(stage, {}) for stage in choice.stages)
    ]


def apply(bundle: Bundle, chosen: Choices) -> Bundle:
    """The bundle (`mv2_jax.bundle.Bundle`) with its stages as chosen; the preset is `presets`'.

    Raises:
        InputError: more layers are to be left out than a text encoder has, windows overlap by
            more than they hold, the folder names a sampler that there is not, or it lacks the
            interpolator that was chosen.
    """
    stages, defaults = dict(bundle.stages), dict(bundle.defaults)
    for name in DIFFUSION:
        values = dict(chosen.get(name, {}))
        stage, program = stages[name], values.pop("few_steps", None)
        if program:
            stage = few(stage, program)
            numbers = {k: v for k, v in defaults.get(name, {}).items() if k != "steps"}
            defaults[name] = {**numbers, "guidance": FEW_STEPS[program].guidance}
        if "context" in values:
            values = {"window": _usual_window(stage), **values}
        grid = {key: values.pop(key) for key in ("spacing", "steps_offset") if key in values}
        stages[name] = dataclasses.replace(stage, schedule=_spaced(name, stage, grid), **values)
        _check(bundle, name, stages[name], values)
    network = chosen.get("vfi", {}).get("network")
    if network:
        stages["vfi"] = {"network": interpolators.check(network, bundle)}
    return dataclasses.replace(bundle, stages=stages, defaults=defaults)


def _usual_window(stage: Any) -> int:
    """AnimateDiff-Evolved's 16 frames, or as many as the motion modules know; the folder's own."""
    known = stage.windows[0]
    return stage.window or min(16, known)


def _spaced(name: str, stage: Any, grid: Mapping[str, Any]) -> Any:
    """The stage's schedule with other timesteps visited. Raises InputError where it has none."""
    if grid and not isinstance(stage.schedule, ScheduleConfig):
        flag, process = next(iter(grid)).replace("_", "-"), type(stage.schedule).__name__
        raise InputError(
            f"--{flag}: the process of {name} is {process}, which has no timesteps to choose from"
        )
    return dataclasses.replace(stage.schedule, **grid) if grid else stage.schedule


def _check(bundle: Bundle, name: str, stage: Any, values: Mapping[str, Any]) -> None:
    """Refuses what the parser of a flag could not know to be wrong."""
    if stage.sampler not in SAMPLERS:  # what is in there is known to be good, and needs no import
        try:
            lookup.find(stage.sampler, SAMPLERS, "sampler", fits=callable, wants="a function")
        except InputError as error:
            raise InputError(f"{bundle.folder}: {name}: {error}") from None
    if "clip_skip" in values:
        layers = bundle.config("text_encoder").layers
        if stage.clip_skip >= layers:
            raise InputError(
                f"--clip-skip {stage.clip_skip}: these weights' text encoder has {layers} layers"
            )
    control = bundle.components.get("control")
    sparse = control is not None and isinstance(control.config, SparseControlConfig)
    if sparse and stage.frames > stage.windows[0]:
        raise InputError(
            f"--frames {stage.frames}: these weights' SparseCtrl knows no more than the "
            f"{stage.windows[0]} frames of one motion window"
        )
    own = "t2i_vae" if name == "t2i" and "t2i_vae" in bundle.components else "vae"
    cells = 4 * bundle.config(own).factor if stage.tile else 1
    if stage.tile % cells:
        raise InputError(f"--vae-tile {stage.tile}: tiles are multiples of {cells} pixels")
    known = stage.unet.motion.max_frames if getattr(stage.unet, "motion", None) else None
    if known and "window" in values and stage.window > known:
        raise InputError(f"--window {stage.window}: these motion modules know {known} frames")
    if {"overlap", "window"} & values.keys():
        window, overlap = stage.windows
        if overlap >= window:
            raise InputError(f"--overlap {overlap}: motion windows are {window} frames long")
