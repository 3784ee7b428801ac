"""Presets of full-size cascades, and which of them fits a folder of weights."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mv2_jax.config import StageConfig, UNetConfig
from mv2_jax.configs import paper, sd15, sdxl
from mv2_jax.errors import InputError
from mv2_jax.lookup import one_of
from mv2_jax.numbers import DIFFUSION

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle

PRESETS: dict[str, Any] = {"sd15": sd15, "paper": paper, "sdxl": sdxl}


def suiting(spatial: UNetConfig, picture: UNetConfig) -> str:
    """The preset that suits the video stages' UNet and T2I's: the paper's where T2I alone is SDXL,
    which wants 1024x1024."""
    if spatial.pooled_width:
        return "sdxl"
    return "paper" if picture.pooled_width else "sd15"


def fitting(bundle: Bundle) -> str:
    """The preset that suits a folder's networks."""
    return suiting(bundle.config("spatial"), _picture(bundle))


def complete(bundle: Bundle, name: str | None = None) -> Bundle:
    """The bundle with a preset's sizes, frames and schedules where it says nothing itself.

    Args:
        name: a preset, whose sizes and frames then replace the bundle's own; None keeps what the
            bundle says and takes what is missing from the preset that fits.

    Raises:
        InputError: an unknown preset, or weights that are not of Stable Diffusion's size.
    """
    missing = [stage for stage in DIFFUSION if stage not in bundle.stages]
    if name is None and not missing:
        return bundle
    if name is not None:
        one_of(name, PRESETS, "preset")
    preset = PRESETS[name or fitting(bundle)]
    if bundle.config("spatial").channels != preset.I2V.unet.channels:
        if name is None:
            return bundle  # what is missing is said where it is needed
        size = "SDXL" if preset.I2V.unet.pooled_width else "SD1.5"
        raise InputError(f"--preset {name} is for weights of {size}'s size, not {bundle.name}'s")
    stages = dict(bundle.stages)
    for stage in DIFFUSION:
        wanted: StageConfig = getattr(preset, stage.upper())
        if stage in missing:
            stages[stage] = dataclasses.replace(wanted, unet=_network(bundle, stage))
        elif name is not None:
            stages[stage] = dataclasses.replace(
                stages[stage], size=wanted.size, frames=wanted.frames
            )
    defaults = dict(bundle.defaults)
    for stage, numbers in preset.DEFAULTS.items():
        defaults[stage] = {**numbers, **defaults.get(stage, {})}
    return dataclasses.replace(bundle, stages=stages, defaults=defaults)


def _picture(bundle: Bundle) -> Any:
    """The config of T2I's UNet: its own, or the shared one."""
    return bundle.config("t2i_unet" if "t2i_unet" in bundle.components else "spatial")


def _network(bundle: Bundle, stage: str) -> Any:
    """The config of a stage's UNet from those of the folder's components."""
    if stage == "t2i":
        return _picture(bundle)
    motion = bundle.config(f"motion_{stage}")
    return dataclasses.replace(bundle.config("spatial"), motion=motion, image_tokens=True)
