"""How a cascade's stages are sampled, beside the schedulers of diffusers that say it.

A pipeline's scheduler is loaded by diffusers itself; a single file's marks and metadata are read
anew, by safetensors. What the user said at conversion (`asked`) counts before both.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
from safetensors import safe_open

from mv2_jax.bundle import Bundle
from mv2_jax.config import ScheduleConfig, StageConfig
from mv2_jax.convert import reference, staging
from mv2_jax.convert.pending import PendingNetwork
from mv2_jax.convert.verify import Verdict, apart
from mv2_jax.diffusion import process, schedules
from mv2_jax.errors import InputError

_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "v": "v"}
# As StableDiffusionPipeline and AnimateDiffPipeline are published.
_SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_SD |= {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}


def stage(
    bundle: Bundle, built: Mapping[str, PendingNetwork], asked: Mapping[str, Any], name: str
) -> Verdict:
    """Compares the schedule and the network of a stage with what its sources say.

    Args:
        asked: what the user said at conversion, as sources.json keeps it.

    Raises:
        InputError: the stage's schedule is none that is known.
    """
    mine: StageConfig = bundle.stages[name]
    theirs = _scheduler(built, asked, name)
    if not hasattr(theirs, "alphas_cumprod"):
        return _process(bundle, mine, theirs, name)
    if not isinstance(mine.schedule, ScheduleConfig):
        note = f"its process is {type(mine.schedule).__name__}, not a discrete schedule"
        return Verdict(name, f"diffusers' {type(theirs).__name__}", 0.0, 0.0, (note,))
    squared = np.array(theirs.alphas_cumprod, np.float64)
    try:
        ours = schedules.alphas_cumprod(mine.schedule).astype(np.float64)
    except ValueError as error:
        raise InputError(f"{name}: its schedule in the cascade makes none: {error}") from None
    if ours.shape != squared.shape:
        verdict = Verdict(name, "", float("nan"), float("nan"))
    else:
        # Where no signal is left, diffusers puts the smallest that it can divide by.
        verdict = apart(name, "", [(np.sqrt(ours), np.sqrt(np.where(squared < 1e-7, 0, squared)))])
    notes = [*_settings(mine, theirs, built, asked, name), *_pipeline(bundle, mine, name)]
    against = f"diffusers' {type(theirs).__name__}"
    return dataclasses.replace(verdict, component=name, against=against, notes=tuple(notes))


def _process(bundle: Bundle, mine: StageConfig, theirs: Any, name: str) -> Verdict:
    """A stage over EDM or rectified flow: the levels and times that both visit."""
    theirs.set_timesteps(mine.steps)
    grid = process.of(mine.schedule).grid(mine.steps)
    levels = np.asarray(theirs.sigmas, np.float64)[:-1]
    ours = grid.sigma if hasattr(theirs, "shift") else grid.sigma / grid.alpha
    pairs = [(ours, levels), (grid.t, np.asarray(theirs.timesteps, np.float64))]
    against, notes = f"diffusers' {type(theirs).__name__}", list(_pipeline(bundle, mine, name))
    output = getattr(mine.schedule, "output", None)
    if output and output != _PREDICTIONS[theirs.config.prediction_type]:
        notes.append(f"output is {output!r}, not {theirs.config.prediction_type!r}")
    verdict = apart(name, against, pairs)
    return dataclasses.replace(verdict, notes=(*verdict.notes, *notes))


def _settings(
    mine: StageConfig,
    theirs: Any,
    built: Mapping[str, PendingNetwork],
    asked: Mapping[str, Any],
    name: str,
) -> Iterator[str]:
    schedule, config = mine.schedule, theirs.config
    expected: dict[str, Any] = {
        "prediction": _PREDICTIONS[config.prediction_type],
        "spacing": getattr(config, "timestep_spacing", "linspace"),
    }
    few = asked.get("few_steps") if name != "t2i" else asked.get("t2i_few_steps")
    if few not in (None, "none"):
        expected.pop("spacing")  # the distillation's
    elif schedule.spacing == "leading":
        # StableDiffusionPipeline sets it, whatever its scheduler says; SDXL's does not.
        plain = built["spatial" if name != "t2i" else _picture(built)].config.pooled_width is None
        expected["steps_offset"] = 1 if plain else config.steps_offset
    if name == "t2i" and hasattr(config, "set_alpha_to_one"):
        expected["final_alpha_one"] = config.set_alpha_to_one
    for field, value in expected.items():
        if getattr(schedule, field) != value:
            yield f"{field} is {getattr(schedule, field)!r}, not {value!r}"


def _pipeline(bundle: Bundle, mine: StageConfig, name: str) -> Iterator[str]:
    """Whether the stage runs the folder's very network, and tells it what diffusers' does."""
    # Guidance by the text and the zero picture, all text layers, every condition.
    told = None if name == "t2i" else staging.conditions(bundle.components)
    for field, value in {"rule": "public", "clip_skip": 0, "conditions": told}.items():
        if getattr(mine, field) != value:
            yield f"{field} is {getattr(mine, field)!r}, not {value!r}"
    held = "t2i_unet" if name == "t2i" and "t2i_unet" in bundle.components else "spatial"
    unet = bundle.config(held)
    if name != "t2i":
        motion = bundle.config(f"motion_{name}")
        unet = dataclasses.replace(unet, motion=motion, image_tokens=True)
    if mine.unet != unet:
        yield "its UNet is not that of the component's config"


def _picture(built: Mapping[str, PendingNetwork]) -> str:
    return "t2i_unet" if "t2i_unet" in built else "spatial"


def _scheduler(built: Mapping[str, PendingNetwork], asked: Mapping[str, Any], name: str) -> Any:
    """The scheduler of diffusers that a stage is published with."""
    own = name == "t2i" and "t2i_unet" in built and asked.get("t2i")
    said = asked.get("t2i_sampled" if own else "sampled") or {}
    still = _still(built[_picture(built) if name == "t2i" else "spatial"], said)
    if name == "t2i":
        return still
    end = 0.012
    kind = "linear"
    if built["spatial"].config.pooled_width is not None:
        hotshot = reference.is_hotshot(built[f"motion_{name}"])
        kind, end = "scaled_linear", 0.012 if hotshot else 0.02
    changes = {"beta_schedule": kind, "beta_end": end}
    prediction = still.config.prediction_type
    return diffusers.DDIMScheduler(**{**_SD, **changes}, prediction_type=prediction)


def _still(network: PendingNetwork, said: Mapping[str, Any]) -> Any:
    """A checkpoint's own."""
    path = network.found.path
    folder = path.parent / "scheduler"
    changes: dict[str, Any] = {}
    if said.get("schedule"):
        scheduler = _OTHERS.get(said["schedule"], lambda: diffusers.DDIMScheduler(**_SD))()
        if said["schedule"] == "ztsnr":
            changes = _ztsnr()
    elif network.found.settings.get("_class_name") == "UNetMotionModel":
        # AnimateDiffPipeline's scheduler is its modules'; the UNet is Stable Diffusion's.
        own = _load(folder).config if folder.is_dir() else {}
        scheduler = diffusers.DDIMScheduler(**_SD)
        changes["prediction_type"] = own.get("prediction_type", "epsilon")
    elif path.is_dir() and folder.is_dir():
        scheduler = _load(folder)
    else:
        scheduler, changes = _marked(path)
    if said.get("prediction"):
        kinds = {ours: theirs for theirs, ours in _PREDICTIONS.items() if theirs != "v"}
        changes["prediction_type"] = kinds[said["prediction"]]
    return type(scheduler).from_config(scheduler.config, **changes)


def _load(folder: Path) -> Any:
    index, text = folder.parent / "model_index.json", "{}"
    if index.is_file():
        text = index.read_text(encoding="utf-8")
    settings = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))
    listed = json.loads(text).get("scheduler")
    name = listed[-1] if listed else settings.get("_class_name")
    if name is None:  # made by hand: Stable Diffusion's own, but for what it says
        return diffusers.DDIMScheduler(**{**_SD, **settings})
    return getattr(diffusers, name).from_pretrained(folder)


def _ztsnr() -> dict[str, Any]:
    return {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    }


def _marked(path: Path) -> tuple[Any, dict[str, Any]]:
    """What a single file's marks and metadata say: a scheduler, and what is changed in it."""
    plain = diffusers.DDIMScheduler(**_SD)
    if path.suffix != ".safetensors":
        return plain, {}
    with safe_open(path, framework="np") as file:
        names, told = set(file.keys()), file.metadata() or {}
        if "edm_vpred.sigma_max" in names:
            ends = {
                key: float(file.get_tensor(f"edm_vpred.{key}"))
                for key in ("sigma_min", "sigma_max")
                if f"edm_vpred.{key}" in names
            }
            return _cosxl(**ends), {}
    words = [told.get(f"modelspec.{key}") for key in ("prediction_type", "predict_key")]
    v = "v_pred" in names or "v" in words or told.get("ss_v_parameterization") == "True"
    changes = _ztsnr() if "ztsnr" in names else {}
    return plain, {**changes, "prediction_type": "v_prediction" if v else "epsilon"}


def _cosxl(**ends: float) -> Any:
    """CosXL's scheduler, as its own folder has it."""
    levels = {"sigma_data": 1.0, "sigma_schedule": "exponential", "sigma_max": 120.0}
    return diffusers.EDMEulerScheduler(prediction_type="v_prediction", **{**levels, **ends})


_OTHERS = {
    "cosxl": _cosxl,
    "edm": diffusers.EDMEulerScheduler,
    "flow": diffusers.FlowMatchEulerDiscreteScheduler,
    "sd3": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}
