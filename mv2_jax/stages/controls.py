"""From a stage's numbers (`mv2_jax.numbers`) to what its conditions are asked about weights.

Everything is an array of the same shape whatever the numbers are, so that changing one compiles
nothing; weights by frame, and a picture for each frame, have other shapes, and are left out where
nobody asks for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mv2_jax import number_kinds, numbers
from mv2_jax.diffusion import samplers
from mv2_jax.errors import InputError
from mv2_jax.stages import chain
from mv2_jax.stages.conditions.control import Control
from mv2_jax.stages.stage import Config


def inputs(
    cfg: Config, own: numbers.Video, steps: int, keyframes: Any = None, batch: int = 1
) -> dict[str, np.ndarray]:
    """The raw inputs that say how much a stage's conditions count, and what ControlNets see.

    Args:
        own: its numbers, such as `numbers.I2V`.
        steps: of a whole chain.
        keyframes: V2V's, [B, T, H, W, 3] in [-1, 1].

    Raises:
        InputError: numbers for more ControlNets than there are, or parts of a chain upside down.
    """
    (first, frames), made = _run(cfg, own, steps, keyframes), {}
    for kind in ("image", "control"):
        conditions = [each for each in cfg.conditions if getattr(each, "weighed", "") == kind]
        count = len(conditions)
        scales, starts, ends = (
            _each(own, f"{kind}_{what}", count) for what in ("scale", "start", "end")
        )
        curves = _curves(own, kind, count, frames)
        for number, condition in enumerate(conditions):
            name, start, end = condition.name, starts[number], ends[number]
            if start > end:
                raise InputError(f"{kind}_start is {start:g}, after {kind}_end, {end:g}")
            made[f"{name}_scale"] = np.float32(scales[number])
            made[f"{name}_between"] = between(cfg, steps, first, start, end)
            if curves is not None:
                made[f"{name}_frames"] = curves[number]
            if kind == "control" and _words(own, count)[number] == "keyframes":
                made[f"{name}_image"] = np.asarray(keyframes, np.float32)
            if isinstance(condition, Control) and condition.net.types:
                types = condition.net.types
                made[f"{name}_type"] = np.int32(_type(own, number, count, types))
    scale = np.full((batch,), own.motion_scale, np.float32)
    if own.motion_frames:
        curve, *more = number_kinds.curves(own.motion_frames, frames)
        if more:
            raise InputError("motion_frames is one list")
        scale = scale[:, None] * np.asarray(curve, np.float32)
    return {**made, "motion_scale": scale}


def of_text(cfg: Config, own: numbers.Guided) -> dict[str, np.ndarray]:
    """What SDXL's text is told beside words: "sizes" [6], of pictures; and "encode_empty" []."""

    def size(text: str, other: tuple[int, int]) -> tuple[int, int]:
        width, _, height = text.partition("x")
        return (int(height), int(width)) if text else other

    plane = cfg.stage.size
    sizes = (size(own.original_size, plane), size(own.crop, (0, 0)), size(own.target_size, plane))
    encoded = own.empty_text == "encoded"
    return {"sizes": np.asarray(sizes, np.float32).reshape(6), "encode_empty": np.asarray(encoded)}


def extent(
    cfg: Config, own: numbers.Guided, steps: int, keyframes: Any = None
) -> tuple[int, np.ndarray]:
    """How many frames a chain has, and the timesteps [S] of its steps; as `inputs`."""
    first, frames = _run(cfg, own, steps, keyframes)
    return frames, np.asarray(chain.program(cfg.stage, steps)[1].t)[min(first, steps - 1) :]


def _run(cfg: Config, own: numbers.Guided, steps: int, keyframes: Any) -> tuple[int, int]:
    """The first step that is run, and the frames."""
    if keyframes is None or not isinstance(own, numbers.V2V):
        return 0, cfg.stage.frames
    return int(samplers.start_index(steps, own.strength)), keyframes.shape[1]


def between(cfg: Config, steps: int, first: int, start: float, end: float) -> np.ndarray:
    """The lowest and the highest timestep [2] within a part of a chain, given by its fractions.

    Of n steps that are run the i-th, from 0, is in it where start <= i / n and (i + 1) / n <= end,
    as diffusers has `control_guidance_start` and `control_guidance_end`.
    """
    if (start, end) == (0.0, 1.0):
        return np.asarray([-np.inf, np.inf], np.float32)
    t = np.asarray(chain.program(cfg.stage, steps)[1].t)[first:]
    inside = [i for i in range(len(t)) if i / len(t) >= start and (i + 1) / len(t) <= end]
    if not inside:
        return np.asarray([np.inf, -np.inf], np.float32)
    return np.asarray([t[inside].min(), t[inside].max()], np.float32)


def _each(own: numbers.Video, name: str, count: int) -> tuple[float, ...]:
    return _spread(number_kinds.several(getattr(own, name)), name, count)


def _words(own: numbers.Video, count: int) -> tuple[str, ...]:
    return _spread(tuple(own.control_sees.split(",")), "control_sees", count)


def _type(own: numbers.Video, number: int, count: int, types: int) -> int:
    """What the picture of a ControlNet Union with so many types shows. Raises InputError."""
    word = _spread(tuple(own.control_type.split(",")), "control_type", count)[number]
    if word not in numbers.CONTROL_TYPES[:types]:
        known = ", ".join(numbers.CONTROL_TYPES[:types])
        raise InputError(f"control_type is {word}; this ControlNet Union knows {known}")
    return numbers.CONTROL_TYPES.index(word)


def _curves(own: numbers.Video, kind: str, count: int, frames: int) -> np.ndarray | None:
    """Weights [count, frames] float32, or None where all are 1."""
    text, name = getattr(own, f"{kind}_frames"), f"{kind}_frames"
    alone = np.ones((count, frames), np.float32)
    if kind == "control":
        for number, word in enumerate(_words(own, count)):
            alone[number, 1:] = 0 if word == "first" else 1
    if not text and alone.all():
        return None
    curves = _spread(tuple(number_kinds.curves(text, frames)), name, count)
    return alone * np.asarray(curves, np.float32).reshape(count, frames)


def _spread(values: tuple[Any, ...], name: str, count: int) -> tuple[Any, ...]:
    """A value for each of so many ControlNets. Raises InputError."""
    if len(values) > 1 and len(values) != count:
        nets = "one ControlNet" if count == 1 else f"{count} ControlNets"
        raise InputError(f"{name} has {len(values)} values; these weights have {nets}")
    return values * count if len(values) == 1 else values


def one_each(**given: Any) -> None:
    """Refuses batches of different lengths, which would broadcast to something nobody meant."""
    counts = {name: len(rows) for name, rows in given.items()}
    if isinstance(given["prompts"], str):
        raise ValueError("prompts is one text; give a list of them")
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"one of each is needed for every sample, not {listed}")
