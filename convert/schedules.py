"""How a checkpoint wants to be sampled: its noise schedule, what it predicts, and by which sampler.

Three places say it: a pipeline's scheduler_config.json, empty tensors that stand as marks in a
single file (`v_pred`, `ztsnr`; ComfyUI writes and reads them, A1111 and OneTrainer read them), and
a safetensors file's metadata (`modelspec.prediction_type` of kohya's, `modelspec.predict_key` of
ComfyUI's). `still` reads them all; where they contradict each other, or say what is not known here,
it refuses, and `Override` says it instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from mv2_jax.config import ScheduleConfig, UNetConfig
from mv2_jax.configs.few_steps import PICTURE_STEPS, Few
from mv2_jax.convert import processes
from mv2_jax.convert.checkpoint import Checkpoint
from mv2_jax.convert.kinds.motion import HOTSHOT
from mv2_jax.diffusion.schedules import KINDS, SPACINGS
from mv2_jax.errors import InputError
from mv2_jax.lookup import nearest, one_of

_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
PREDICTIONS = tuple(_PREDICTIONS.values())
# Schedules by name, for checkpoints that say nothing or the wrong thing.
SCHEDULES = {
    "sd": ScheduleConfig(),
    # Pure noise at the last timestep, where sampling then has to begin (arXiv 2305.08891).
    "ztsnr": ScheduleConfig(zero_terminal_snr=True, prediction="v", spacing="trailing"),
}
# Words for the prediction in a file's metadata, whoever wrote it.
_WORDS = {"epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v", "velocity": "v"}
_WORDS |= {"v-prediction": "v", "v_pred": "v", "sample": "x0", "x0": "x0"}
_METADATA = ("modelspec.prediction_type", "modelspec.predict_key")


@dataclass(frozen=True)
class Override:
    """What a user says of a checkpoint: a key of `SCHEDULES` or of `processes.NAMES`, and what it
    predicts ("eps", "v", "x0") over a discrete schedule."""

    schedule: str | None = None
    prediction: str | None = None


@dataclass(frozen=True)
class Program:
    """How a stage is sampled; `guidance` None is the preset's. `source` says who says so."""

    schedule: Any = ScheduleConfig()  # or another process
    sampler: str = "ddim"
    steps: int = 25
    guidance: float | None = None
    source: str = "nothing in it says otherwise"

    def over(self, **changes: Any) -> Program:
        """The program over a schedule with other values."""
        return replace(self, schedule=replace(self.schedule, **changes))

    def taking(self, few: Few) -> Program:
        """The program with a distilled network's sampler, spacing, steps and guidance."""
        made = replace(self, sampler=few.sampler, steps=few.steps, guidance=few.guidance)
        return made.over(spacing=few.spacing)


class Scheduler(NamedTuple):
    """A scheduler class of diffusers: the sampler here, and what it takes for absent settings."""

    sampler: str
    spacing: str
    betas: tuple[str, float, float]
    alpha_one: bool = False
    clips: bool = False

    @property
    def defaults(self) -> dict[str, Any]:
        """The settings of scheduler_config.json that are read here, where a file lacks them."""
        kind, start, end = self.betas
        return {
            "beta_schedule": kind,
            "beta_start": start,
            "beta_end": end,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "timestep_spacing": self.spacing,
            "steps_offset": 0,
            "set_alpha_to_one": self.alpha_one,
            "rescale_betas_zero_snr": False,
            "clip_sample": self.clips,
        }


_PIXELS, _LATENTS = ("linear", 0.0001, 0.02), ("scaled_linear", 0.00085, 0.012)
_K = ("linear", 0.00085, 0.012)
# diffusers 0.42. A solver that is not here gives way to the nearest that is.
SCHEDULERS = {
    "DDIMScheduler": Scheduler("ddim", "leading", _PIXELS, alpha_one=True, clips=True),
    "DDPMScheduler": Scheduler("ddim", "leading", _PIXELS, alpha_one=True, clips=True),
    "PNDMScheduler": Scheduler("ddim", "leading", _PIXELS),
    "EulerDiscreteScheduler": Scheduler("euler", "linspace", _PIXELS),
    "EulerAncestralDiscreteScheduler": Scheduler("euler_a", "linspace", _PIXELS),
    "HeunDiscreteScheduler": Scheduler("euler", "linspace", _K),
    "KDPM2DiscreteScheduler": Scheduler("euler", "linspace", _K),
    "KDPM2AncestralDiscreteScheduler": Scheduler("euler_a", "linspace", _K),
    "LMSDiscreteScheduler": Scheduler("euler", "linspace", _PIXELS),
    "DPMSolverMultistepScheduler": Scheduler("dpmpp_2m", "linspace", _PIXELS),
    "DPMSolverSinglestepScheduler": Scheduler("dpmpp_2m", "linspace", _PIXELS),
    "DEISMultistepScheduler": Scheduler("dpmpp_2m", "linspace", _PIXELS),
    "UniPCMultistepScheduler": Scheduler("unipc", "linspace", _PIXELS),
    "LCMScheduler": Scheduler("lcm", "leading", _LATENTS, alpha_one=True),
    "TCDScheduler": Scheduler("tcd", "leading", _LATENTS, alpha_one=True),
}
_KARRAS = ("dpmpp_2m", "unipc")  # samplers that have a form with such sigmas
# Settings under which a scheduler is another process, with the values that are the one here.
_FORMS: dict[str, tuple[Any, ...]] = {
    "trained_betas": (),
    "thresholding": (),
    "sigma_min": (),
    "sigma_max": (),
    "timestep_type": ("discrete",),
    "use_flow_sigmas": (),
}
# The rest: how a solver goes about it, or of no effect on latents.
_SOLVERS = frozenset(
    "algorithm_type clip_sample_range dynamic_thresholding_ratio euler_at_final eta "
    "final_sigmas_type flow_shift interpolation_type lambda_min_clipped lower_order_final "
    "original_inference_steps predict_x0 sample_max_value shift_terminal skip_prk_steps "
    "solver_order solver_p solver_type disable_corrector timestep_scaling time_shift_type "
    "use_beta_sigmas use_dynamic_shifting use_exponential_sigmas use_karras_sigmas "
    "use_lu_lambdas variance_type".split()
)


def still(
    source: Checkpoint, unet: UNetConfig, override: Override = Override(), few: str | None = None
) -> Program:
    """How the pictures of a checkpoint are sampled.

    Args:
        unet: its UNet. Stable Diffusion's pipelines settle two things for it, whatever its
            scheduler says: `steps_offset` is 1, and nothing is clipped. SDXL's do not.
        few: a key of `few_steps.PICTURE_STEPS`, or "none" for a network that is not distilled
            whatever its scheduler looks like; None reads it from the scheduler.

    Raises:
        InputError: a schedule or a process that is not known here, or sayings that contradict.
    """
    try:
        process = _process(source, override)
        if process is not None:
            return process
        program = _said(source, unet, override)
        name = few or _distilled(source, program, override)
        if name and name != "none":
            program = program.taking(PICTURE_STEPS[name])
            program = replace(program, source=f"{program.source}; few steps: {name}")
        if program.schedule.zero_terminal_snr and program.schedule.prediction == "eps":
            raise InputError(
                "its schedule ends in pure noise, where a network that predicts noise says "
                "nothing; say --prediction v or --schedule sd"
            )
    except InputError as error:
        raise InputError(f"{source.asked}: {error}") from None
    return program


def words(process: Any) -> str:
    """What a network predicts over which noise, for a person."""
    if isinstance(process, ScheduleConfig):
        kind = process.kind.replace("_", " ") + " to pure noise" * process.zero_terminal_snr
        return f"predicts {process.prediction} over {kind} betas, {process.spacing}"
    values = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(process).items() if v is not None)
    return f"{type(process).__name__} ({values})"


def video(still: Any, unet: UNetConfig, modules: str = "") -> ScheduleConfig:
    """The schedule that motion modules were trained with, for the UNet that they stand in.

    AnimateDiff's: for Stable Diffusion 1.5 linear betas from 0.00085 to 0.012 (its
    configs/inference; others call them "sqrt_linear"); for SDXL scaled linear ones that end at
    0.02 (its branch for SDXL).
    Hotshot-XL's: SDXL's own. What the network predicts is the spatial weights' own.

    Args:
        still: the UNet's own schedule or process. modules: the layout of the modules' file.

    Raises:
        InputError: those are of another process, which no published motion modules are of.
    """
    if not isinstance(still, ScheduleConfig):
        raise InputError(
            f"motion modules are trained over discrete schedules, and the UNet's is "
            f"{type(still).__name__}; it serves for --t2i alone"
        )
    kind, end = ("linear", 0.012) if unet.pooled_width is None else ("scaled_linear", 0.02)
    if modules == HOTSHOT:
        kind, end = "scaled_linear", 0.012
    return ScheduleConfig(
        kind=kind, beta_end=end, train_steps=still.train_steps, prediction=still.prediction
    )


def _said(source: Checkpoint, unet: UNetConfig, override: Override) -> Program:
    """What scheduler, marks, metadata and the user say, together."""
    if override.schedule:
        sampler = "euler" if override.schedule == "ztsnr" else "ddim"
        program = Program(SCHEDULES[override.schedule], sampler, source="--schedule")
    else:
        program = _published(source.schedule, unet) if source.schedule else Program()
        if "ztsnr" in source.marks:
            program = program.over(zero_terminal_snr=True, spacing="trailing")
            program = replace(program, sampler="euler")
    if override.prediction:
        return replace(program.over(prediction=override.prediction), source="--prediction")
    said = _predictions(source)
    if not said:
        return program
    if source.schedule and not override.schedule:
        said[program.source] = program.schedule.prediction
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{who} says {what}" for who, what in said.items())
        raise InputError(f"what it predicts is contradicted ({listed}); say --prediction")
    program = program.over(prediction=next(iter(said.values())))
    return program if source.schedule else replace(program, source=" and ".join(said))


def _process(source: Checkpoint, override: Override) -> Program | None:
    """The program of a process that is no discrete schedule, if the checkpoint is of one."""
    if override.schedule in processes.NAMES:
        found, said = processes.named(override.schedule), "--schedule"
    elif override.schedule:
        return None
    elif source.schedule:
        found = processes.of_scheduler(source.schedule)
        said = f"its {source.schedule.get('_class_name')}"
    else:
        found, said = processes.of_marks(source.marks), "its tensor edm_vpred.sigma_max"
    if found is None:
        return None
    if override.prediction:
        name = type(found).__name__
        raise InputError(f"--prediction is for discrete schedules; {said} says {name}")
    return Program(found, "euler", source=said)


def _predictions(source: Checkpoint) -> dict[str, str]:
    """{who says it: what the network predicts} of a file's marks and metadata."""
    said: dict[str, str] = {}
    if "v_pred" in source.marks:
        said["its tensor v_pred"] = "v"
    for key in _METADATA:
        word = source.metadata.get(key, "").lower()
        if word in ("", "none", "null"):
            continue
        if word not in _WORDS:
            raise InputError(
                f"its metadata say {key} {word!r}, which is not known (known: "
                f"{', '.join(_WORDS)}); say --prediction{nearest(word, _WORDS)}"
            )
        said[f"its metadata ({key})"] = _WORDS[word]
    if source.metadata.get("ss_v_parameterization", "").lower() == "true":
        said["its metadata (ss_v_parameterization)"] = "v"
    return said


def _published(settings: Mapping[str, Any], unet: UNetConfig) -> Program:
    """The program of a scheduler's settings, as its own class reads them."""
    name = settings.get("_class_name")
    scheduler = _class(name) if name is not None else None
    plain = ScheduleConfig()
    given = {**(scheduler.defaults if scheduler else {}), **settings}
    _check(given)
    if unet.pooled_width is None:
        given["steps_offset"] = 1
    elif given.get("clip_sample"):
        raise InputError("the scheduler clips its samples (clip_sample), as no latents should be")
    words = {
        name: one_of(given.get(name, usual), known, name, "the scheduler")
        for name, usual, known in (
            ("prediction_type", "epsilon", _PREDICTIONS),
            ("beta_schedule", plain.kind, KINDS),
            ("timestep_spacing", plain.spacing, SPACINGS),
        )
    }
    steps = _number(given, "num_train_timesteps", plain.train_steps, 1, 1_000_000, int)
    schedule = ScheduleConfig(
        kind=words["beta_schedule"],
        beta_start=_number(given, "beta_start", plain.beta_start, 0.0, 1.0),
        beta_end=_number(given, "beta_end", plain.beta_end, 0.0, 1.0),
        train_steps=steps,
        zero_terminal_snr=bool(given.get("rescale_betas_zero_snr", False)),
        prediction=_PREDICTIONS[words["prediction_type"]],
        spacing=words["timestep_spacing"],
        steps_offset=_number(given, "steps_offset", plain.steps_offset, 0, steps - 1, int),
        final_alpha_one=bool(given.get("set_alpha_to_one", plain.final_alpha_one)),
    )
    if scheduler is None:
        return Program(schedule, source="its scheduler")
    sampler = scheduler.sampler
    if sampler == "dpmpp_2m" and "sde" in str(given.get("algorithm_type", "")):
        sampler = "dpmpp_2m_sde"
    if given.get("use_karras_sigmas") and sampler.startswith(_KARRAS):
        sampler += "_karras"
    return Program(schedule, sampler, source=f"its {name}")


def _class(name: Any) -> Scheduler:
    if isinstance(name, str) and name in SCHEDULERS:
        return SCHEDULERS[name]
    raise InputError(
        f"its scheduler is {name}, which is not known here; --schedule says which to take in its "
        f"place{nearest(str(name), SCHEDULERS)}"
    )


def _check(given: Mapping[str, Any]) -> None:
    """Refuses settings that make another process of a scheduler, and settings nobody knows."""
    known = {*_FORMS, *_SOLVERS, *SCHEDULERS["DDIMScheduler"].defaults}
    for key, value in given.items():
        if key.startswith("_") or value is None or value is False:
            continue
        if key not in known or value not in _FORMS.get(key, (value,)):
            near = "" if key in known else nearest(key, known)
            raise InputError(
                f"the scheduler has {key} {value!r}, which is not supported; --schedule says which "
                f"to take in its place{near}"
            )


def _distilled(source: Checkpoint, program: Program, override: Override) -> str | None:
    """The few-step program that a folder's scheduler stands for, if any.

    SDXL-Turbo is published with ancestral Euler at trailing timesteps, Lightning with plain Euler
    at trailing ones; LCM and TCD have schedulers of their own. A schedule with zero terminal SNR
    is trailing too, without being distilled.
    """
    if source.schedule is None or override.schedule:
        return None
    if program.sampler in ("lcm", "tcd"):
        return program.sampler
    if program.schedule.spacing != "trailing" or program.schedule.zero_terminal_snr:
        return None
    if program.schedule.prediction == "v":
        return None
    return {"euler_a": "turbo", "euler": "lightning"}.get(program.sampler)


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
