"""What a stage does not hear, as it is put together: numbers and raw inputs that change nothing.

Whoever gives one is told so by its name, since the video would be the same without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import jax

from mv2_jax import numbers as sets
from mv2_jax.config import USUAL_RULE
from mv2_jax.diffusion import guidance
from mv2_jax.errors import InputError
from mv2_jax.lookup import nearest
from mv2_jax.models.backbone import Keeping
from mv2_jax.stages import chain
from mv2_jax.stages.conditions.motion import Motion
from mv2_jax.stages.stage import Config

_OF_GUIDED = ("guidance_rescale", "guidance_low", "guidance_high")
_OF_SDXL = ("original_size", "target_size", "crop", "empty_text")
_WEIGHED = {"image": "no picture's tokens", "control": "no ControlNet"}


@cache
def numbers(cfg: Config) -> dict[str, str]:
    """{name: why} of those of its numbers (`mv2_jax.numbers`) that change nothing, whatever the
    others are."""
    rule, why = cfg.rule, {}
    named = f"the guidance rule {cfg.stage.rule or USUAL_RULE!r}"
    scales = {"guidance": "text", "image_guidance": "image"}
    if rule.rows == 1:
        why = dict.fromkeys((*scales, *_OF_GUIDED), f"{named} guides nothing here")
    for name, of in scales.items():
        if rule.rows > 1 and of not in rule.scales:
            told = "the text" if of == "text" else "the picture; 'apart' has one"
            why[name] = f"{named} has no scale for {told}"
    weighed = {getattr(each, "weighed", "") for each in cfg.conditions}
    for kind in _WEIGHED.keys() - weighed:
        names = (name for name in sets.about(cfg.name) if name.startswith(f"{kind}_"))
        of_kind = dict.fromkeys(names, f"the stage has {_WEIGHED[kind]}")
        why = {**of_kind, **why}
    if not any(getattr(getattr(each, "net", None), "types", 0) for each in cfg.conditions):
        why.setdefault("control_type", "the stage has no ControlNet Union")
    if "text_encoder_2" not in cfg.trees:
        why |= dict.fromkeys(_OF_SDXL, "the stage is not SDXL's")
    if not any(isinstance(each, Motion) for each in cfg.conditions):
        why |= dict.fromkeys(("motion_scale", "motion_frames"), "the stage has no motion modules")
    if not isinstance(cfg.backbone, Keeping):
        told = f"{type(cfg.stage.unet).__name__} keeps nothing from step to step"
        why |= dict.fromkeys(("cache_interval", "cache_branch"), told)
    if _from_noise_alone(cfg):
        why["noise_prior"] = "the process begins in noise alone, which holds nothing of a picture"
    return {name: reason for name, reason in why.items() if name in sets.about(cfg.name)}


def _from_noise_alone(cfg: Config) -> bool:
    try:
        with jax.ensure_compile_time_eval():
            return float(chain.program(cfg.stage, cfg.stage.steps)[1].alpha[0]) == 0
    except ValueError:  # its own steps are none that its sampler makes: others may be
        return False


def beside(cfg: Config, own: sets.Guided) -> dict[str, str]:
    """`numbers`, and those that change nothing beside the others in `own`, the stage's numbers;
    "negative" stands for the negative prompt."""
    why, rule = dict(numbers(cfg)), cfg.rule.least(guidance.of(own))
    if rule.rows == 1:
        told = "nothing is guided at a guidance of 1"
        why = {**dict.fromkeys((*_OF_GUIDED, "negative"), told), **why}
        if cfg.rule.rows == 1:
            why["negative"] = why["guidance"]
    elif not any("text" in withheld for withheld in rule.withheld):
        why["negative"] = "guidance steers away from no text here"
    if own.cache_interval == 1:
        why.setdefault("cache_branch", "every step is whole at a cache_interval of 1")
    steps, strength = own.steps or cfg.stage.steps, getattr(own, "strength", 1.0)
    run = steps * strength + 1e-3
    if run < 2:
        alone = dict.fromkeys(("cache_interval", "cache_branch"), "a single step is run, whole")
        why = {**alone, **why}
    if run < 1:
        told = f"no step is run at a strength of {strength:g}"
        names = ("negative", *(name for name in vars(own) if name not in ("steps", "strength")))
        why = {**dict.fromkeys(names, told), **why}
    return why


@cache
def inputs(cfg: Config) -> frozenset[str]:
    """Names of the raw inputs that its conditions read."""
    read = cfg.inputs
    for each in cfg.conditions:
        read |= {*each.blank(cfg, 1), *getattr(each, "takes", ())}
    return read


def refuse(cfg: Config, before: sets.Guided, after: sets.Guided, more: Iterable[str] = ()) -> None:
    """Refuses a change of the stage's numbers, and raw inputs, that change nothing.

    Raises:
        InputError: the first of them, and why; of an input, the nearest that is heard.
    """
    for name, why in numbers(cfg).items() if after != before else ():
        if getattr(after, name, None) != getattr(before, name, None):
            raise InputError(f"{cfg.name} {name} has no effect: {why}")
    for name in more:
        if name not in inputs(cfg):
            raise InputError(f"{cfg.name} has no input {name!r}{nearest(name, inputs(cfg))}")
