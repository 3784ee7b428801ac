"""Checkpoints of other processes than discrete schedules: EDM (CosXL) and rectified flow.

diffusers' EDMEuler, EDMDPMSolverMultistep and FlowMatchEuler schedulers say it in a folder; in a
single file CosXL's marks do (`edm_vpred.sigma_max`), whose tensors hold the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mv2_jax.diffusion.process import EDM, PROCESSES, Flow
from mv2_jax.errors import InputError

# The names under which `--schedule` takes them.
NAMES = ("cosxl", "edm", "flow", "sd3")
_OUTPUTS = {"epsilon": "eps", "v_prediction": "v"}


def named(name: str) -> Any:
    """One of `NAMES`."""
    return PROCESSES[name]


def of_scheduler(settings: Mapping[str, Any]) -> Any | None:
    """The process of a scheduler's settings; None of a discrete schedule's.

    Raises:
        InputError: a form of it that is not known here.
    """
    name = settings.get("_class_name")
    if name in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
        output = settings.get("prediction_type", "epsilon")
        if output not in _OUTPUTS:
            raise InputError(f"its {name} has prediction_type {output!r}, which is not supported")
        return EDM(
            sigma_min=_number(settings, "sigma_min", 0.002),
            sigma_max=_number(settings, "sigma_max", 80.0),
            sigma_data=_number(settings, "sigma_data", 0.5),
            rho=_number(settings, "rho", 7.0),
            levels=settings.get("sigma_schedule", "karras"),
            output=_OUTPUTS[output],
        )
    if name == "FlowMatchEulerDiscreteScheduler":
        forms = ("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas")
        for form in (*forms, "use_beta_sigmas", "invert_sigmas", "stochastic_sampling"):
            if settings.get(form):
                raise InputError(f"its {name} has {form}, which is not supported")
        steps = settings.get("num_train_timesteps", 1000)
        return Flow(shift=_number(settings, "shift", 1.0), train_steps=int(steps))
    return None


def of_marks(marks: Mapping[str, Any]) -> Any | None:
    """The process that a single file's marks and their numbers say; None where there are none.

    Raises:
        InputError: Playground 2.5's, whose latents have a mean and a deviation of their own.
    """
    if "edm_mean" in marks:
        raise InputError(
            "its tensor edm_mean marks Playground 2.5, whose latents have a mean and a deviation "
            "of their own, which is not supported"
        )
    if "edm_vpred.sigma_max" not in marks:
        return None
    low, high = marks.get("edm_vpred.sigma_min"), marks["edm_vpred.sigma_max"]
    low, high = 0.002 if low is None else low, 120.0 if high is None else high
    return EDM(sigma_min=low, sigma_max=high, sigma_data=1.0, levels="exponential", output="v")


def _number(settings: Mapping[str, Any], name: str, default: float) -> float:
    value = settings.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"the scheduler's {name} is {value!r}, which is no number")
    return float(value)
