"""Noise schedules that public checkpoints were trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mv2_jax.config import ScheduleConfig, nearest
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
    prediction = settings.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        known = nearest(prediction, _PREDICTIONS)
        raise InputError(f"the scheduler predicts {prediction!r}, which is not known here{known}")
    return ScheduleConfig(
        kind=_known(settings.get("beta_schedule", plain.kind), KINDS, "beta_schedule"),
        beta_start=settings.get("beta_start", plain.beta_start),
        beta_end=settings.get("beta_end", plain.beta_end),
        train_steps=settings.get("num_train_timesteps", plain.train_steps),
        zero_terminal_snr=settings.get("rescale_betas_zero_snr", False),
        prediction=_PREDICTIONS[prediction],
        spacing=_known(settings.get("timestep_spacing", plain.spacing), SPACINGS, "spacing"),
        steps_offset=settings.get("steps_offset", plain.steps_offset),
        final_alpha_one=settings.get("set_alpha_to_one", plain.final_alpha_one),
    )


def video(still: ScheduleConfig) -> ScheduleConfig:
    """The schedule that AnimateDiff's modules for Stable Diffusion 1.5 were trained with.

    Linear betas from 0.00085 to 0.012 (its configs/inference; others call them "sqrt_linear").
    What the network predicts is the spatial weights' own.
    """
    return ScheduleConfig(kind="linear", train_steps=still.train_steps, prediction=still.prediction)


def _known(word: Any, known: tuple[str, ...], what: str) -> Any:
    if word not in known:
        raise InputError(
            f"the scheduler's {what} is {word!r}; known are {', '.join(known)}"
            f"{nearest(str(word), known)}"
        )
    return word
