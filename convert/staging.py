"""The configs and numbers of the stages that are put together from networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mv2_jax.bundle import CONTROLS
from mv2_jax.config import ScheduleConfig, StageConfig
from mv2_jax.configs import few_steps, presets
from mv2_jax.convert import schedules
from mv2_jax.convert.pending import PendingNetwork
from mv2_jax.convert.tables import motion
from mv2_jax.errors import InputError
from mv2_jax.stages.stage import PICTURED

if TYPE_CHECKING:
    from mv2_jax.convert.assemble import Wanted


def few_steps_of(wanted: Wanted, built: Mapping[str, PendingNetwork], stage: str) -> str | None:
    """What the user says; else AnimateLCM's own file is known by having no positional encodings."""
    moving = built.get(f"motion_{stage}")
    if wanted.few_steps or moving is None:
        return wanted.few_steps
    return None if motion.layout(moving.found.part.tensors).stored_positions else "lcm"


def stages(
    built: Mapping[str, PendingNetwork],
    wanted: Wanted,
    few: Mapping[str, str | None],
    still: schedules.Program,
    moving: Mapping[str, ScheduleConfig],
) -> dict[str, StageConfig]:
    """The stages' configs: `still` is T2I's program, `moving` the video stages' schedules."""
    spatial = built["spatial"].config
    unet = built["t2i_unet"].config if "t2i_unet" in built else spatial
    preset = presets.PRESETS[wanted.preset or presets.suiting(spatial, unet)]
    picture = _picture_size(built) if unet.pooled_width else preset.T2I.size
    size = {"t2i": picture, "i2v": preset.I2V.size, "v2v": preset.V2V.size, **wanted.sizes}
    _check_sizes(built, size)
    made_of = {
        "t2i": StageConfig(
            unet=unet,
            schedule=still.schedule,
            size=size["t2i"],
            steps=still.steps,
            sampler=still.sampler,
            rule=presets.sd15.RULE,
        )
    }
    for stage in ("i2v", "v2v"):
        if f"motion_{stage}" not in built:
            continue
        modules = built[f"motion_{stage}"].config
        frames = wanted.frames or min(preset.I2V.frames, modules.max_frames)
        if frames > modules.max_frames:
            raise InputError(
                f"--frames {frames}: these motion modules know {modules.max_frames} positions"
            )
        made = StageConfig(
            unet=dataclasses.replace(spatial, motion=modules, image_tokens=True),
            schedule=moving[stage],
            size=size[stage],
            frames=frames,
            rule=presets.sd15.RULE,
            conditions=conditions(built),
        )
        program = few[stage]
        made_of[stage] = few_steps.few(made, program) if program else made
    return made_of


def conditions(built: Iterable[str]) -> tuple[str, ...] | None:
    """What a video stage is told, by the names of the components; None is the usual."""
    more = [name for name in CONTROLS[1:] if name in built]
    return (*PICTURED, *more) if more else None


def _picture_size(built: Mapping[str, PendingNetwork]) -> tuple[int, int]:
    """SDXL's: its own folder says it (Turbo's is 512x512), or it is 1024x1024."""
    network = built.get("t2i_unet", built["spatial"])
    vae = built.get("t2i_vae", built.get("vae"))
    side = network.found.settings.get("sample_size")
    if vae is None or not isinstance(side, int) or side < 1:
        return presets.paper.T2I.size
    return side * vae.config.factor, side * vae.config.factor


def _check_sizes(built: Mapping[str, PendingNetwork], sizes: Mapping[str, tuple[int, int]]) -> None:
    for stage, (height, width) in sizes.items():
        vae = built.get("t2i_vae" if stage == "t2i" else "vae", built.get("vae"))
        factor = vae.config.factor if vae else 1
        if height % factor or width % factor or not height * width:
            raise InputError(
                f"--{stage}-size {width}x{height}: both sides must be multiples of {factor}"
            )


# How much a picture's tokens count beside a prompt, by IP-Adapter's README; alone they count 1.
BESIDE_TEXT = 0.5


def defaults(
    few: Mapping[str, str | None], still: schedules.Program
) -> dict[str, dict[str, float]]:
    """The preset's numbers, with guidance as the publishers of distilled networks advise."""
    numbers_of = {stage: dict(numbers) for stage, numbers in presets.sd15.DEFAULTS.items()}
    for stage in ("i2v", "v2v"):
        numbers_of[stage]["image_scale"] = BESIDE_TEXT
    if still.guidance is not None:
        numbers_of["t2i"]["guidance"] = still.guidance
    for stage, program in few.items():
        if program:
            numbers_of[stage]["guidance"] = few_steps.FEW_STEPS[program].guidance
    return numbers_of
