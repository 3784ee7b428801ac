"""Noise schedules that public checkpoints were trained with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mv2_jax.config import ScheduleConfig, UNetConfig, nearest
from mv2_jax.diffusion.schedules import KINDS, SPACINGS
from mv2_jax.errors import InputError

_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def picture(settings: Mapping[str, Any] | None) -> ScheduleConfig:
    """T2I's schedule: of a pipeline's scheduler_config.json, else Stable Diffusion's own.

    Raises:
        InputError: a schedule that is not known here.
    """
    settings = settings or {}
    plain = ScheduleConfig()
    prediction = _known(settings.get("prediction_type", "epsilon"), _PREDICTIONS, "prediction_type")
    steps = _number(settings, "num_train_timesteps", plain.train_steps, 1, 1_000_000, int)
    if settings.get("trained_betas") is not None:
        raise InputError("the scheduler brings betas of its own, which are not read")
    return ScheduleConfig(
        kind=_known(settings.get("beta_schedule", plain.kind), KINDS, "beta_schedule"),
        beta_start=_number(settings, "beta_start", plain.beta_start, 0.0, 1.0),
        beta_end=_number(settings, "beta_end", plain.beta_end, 0.0, 1.0),
        train_steps=steps,
        zero_terminal_snr=bool(settings.get("rescale_betas_zero_snr", False)),
        prediction=_PREDICTIONS[prediction],
        spacing=_known(settings.get("timestep_spacing", plain.spacing), SPACINGS, "spacing"),
        steps_offset=_number(settings, "steps_offset", plain.steps_offset, 0, steps - 1, int),
        final_alpha_one=bool(settings.get("set_alpha_to_one", plain.final_alpha_one)),
    )


def video(still: ScheduleConfig, unet: UNetConfig) -> ScheduleConfig:
    """The schedule that AnimateDiff's modules were trained with, for the UNet that they stand in.

    For Stable Diffusion 1.5 linear betas from 0.00085 to 0.012 (its configs/inference; others call
    them "sqrt_linear"); for SDXL scaled linear ones that end at 0.02 (its branch for SDXL).
    What the network predicts is the spatial weights' own.
    """
    kind, end = ("linear", 0.012) if unet.pooled_width is None else ("scaled_linear", 0.02)
    return ScheduleConfig(
        kind=kind, beta_end=end, train_steps=still.train_steps, prediction=still.prediction
    )


def _number(
    settings: Mapping[str, Any],
    name: str,
    default: float,
    low: float,
    high: float,
    kind: type | tuple[type, ...] = (int, float),
) -> Any:
    """A setting from `low` to `high`."""
    value = settings.get(name, default)
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"the scheduler's {name} is {value!r}; it must be from {low} to {high}")
    return value


def _known(word: Any, known: Collection[str], what: str) -> Any:
    if not isinstance(word, str) or word not in known:
        raise InputError(
            f"the scheduler's {what} is {word!r}; known are {', '.join(known)}"
            f"{nearest(str(word), known)}"
        )
    return word
