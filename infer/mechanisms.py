"""The mechanisms of the cascade, each switched off or varied, everything else being equal.

Variants of one prompt and seed share all that they agree on: a stage runs once for all variants
that are the same up to it. So a variant of V2V costs one run of V2V, not of the cascade.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mv2_jax.diffusion import keys
from mv2_jax.infer import generate, media
from mv2_jax.infer.settings import Numbers
from mv2_jax.lookup import one_of
from mv2_jax.numbers import DIFFUSION
from mv2_jax.programs import Progress, silent
from mv2_jax.stages import latents

if TYPE_CHECKING:
    from mv2_jax.cascade import Cascade

Change = tuple[str, str, float]
Given = dict[str, Any]  # a stage's numbers, by name


@dataclass(frozen=True)
class Variant:
    """One way to run the cascade.

    Attributes:
        name: of this variant, such as "noise prior 0".
        group: the mechanism that it is about, as `--only` takes it.
        changes: (stage, number's name, value) each.
        skip: "v2v": keyframes are merely enlarged; "vfi": frames are merely repeated.
        weights: the arm whose weights it runs; empty: the cascade's own.
    """

    name: str
    group: str
    changes: tuple[Change, ...] = ()
    skip: frozenset[str] = frozenset()
    weights: str = ""


FULL = Variant("the full cascade", "full")


def _both(name: str, value: float) -> tuple[Change, ...]:
    return (("i2v", name, value), ("v2v", name, value))


_NO_PRIOR = (("i2v", "noise_prior", 0.0),)
_NO_TOKENS, _NO_CONTROL = _both("image_scale", 0.0), _both("control_scale", 0.0)
_NO_GUIDANCE = (*(("i2v", n, 1.0) for n in ("guidance", "image_guidance")),)

OFF = (
    Variant("no noise prior", "prior", _NO_PRIOR),
    Variant("no image tokens", "tokens", _NO_TOKENS),
    Variant("no ControlNet", "control", _NO_CONTROL),
    Variant("neither tokens nor ControlNet", "picture", (*_NO_TOKENS, *_NO_CONTROL)),
    Variant("I2V without guidance", "i2v-guidance", _NO_GUIDANCE),
    Variant("no V2V: keyframes enlarged", "v2v", skip=frozenset({"v2v"})),
    Variant("no VFI: frames repeated", "vfi", skip=frozenset({"vfi"})),
)
"""Every mechanism switched off once."""

VARIED = (
    *OFF[:4],
    Variant("nothing of the picture", "picture", (*_NO_PRIOR, *_NO_TOKENS, *_NO_CONTROL)),
    Variant("noise prior 0.5", "prior", (("i2v", "noise_prior", 0.5),)),
    Variant("image tokens at 0.5", "tokens", _both("image_scale", 0.5)),
    Variant("ControlNet at 0.5", "control", _both("control_scale", 0.5)),
    *OFF[5:],
    Variant("V2V strength 0.5", "v2v", (("v2v", "strength", 0.5),)),
    Variant("V2V strength 0.75", "v2v", (("v2v", "strength", 0.75),)),
    *(Variant(f"T2I guidance {g:g}", "t2i-guidance", (("t2i", "guidance", g),)) for g in (1, 2, 8)),
    *(Variant(f"I2V guidance {g:g}", "i2v-guidance", (("i2v", "guidance", g),)) for g in (1, 2, 8)),
    *(
        Variant(f"image guidance {g:g}", "image-guidance", _both("image_guidance", g))
        for g in (1, 3)
    ),
    *(Variant(f"V2V guidance {g:g}", "v2v-guidance", (("v2v", "guidance", g),)) for g in (1, 4)),
    *(
        Variant(f"{n} steps a stage", "steps", tuple((s, "steps", n) for s in DIFFUSION))
        for n in (4, 6, 10, 20)
    ),
)
"""What the study of inference compares with the full cascade."""


def choose(variants: Sequence[Variant], groups: Sequence[str]) -> tuple[Variant, ...]:
    """The variants of these groups; all where none is named.

    Raises:
        InputError: an unknown group; the nearest is named.
    """
    known = list(dict.fromkeys(variant.group for variant in variants))
    for group in groups:
        one_of(group, known, "mechanism")
    return tuple(v for v in variants if not groups or v.group in groups)


Idle = Mapping[str, Mapping[str, str]]
"""{stage: {number: why}}, those that change nothing: `Cascade.idle`."""


def telling(
    variants: Sequence[Variant], numbers: Numbers, idle: Idle
) -> tuple[tuple[Variant, ...], list[str]]:
    """The variants without those that would make the videos of one before them, and a line for each
    of those: a change to what is already so, or of a number that has no effect."""
    kept: dict[Any, Variant] = {}
    lines = []
    for variant in variants:
        key, deaf = _effect(variant, numbers, idle)
        same = kept.setdefault(key, variant)
        if same is not variant:
            why = f" ({'; '.join(dict.fromkeys(deaf))})" if deaf else ""
            lines.append(f"{variant.name!r} is the same as {same.name!r}{why}")
    return tuple(kept.values()), lines


def _effect(variant: Variant, numbers: Numbers, idle: Idle) -> tuple[Any, list[str]]:
    """What a variant's videos hang on, and why some of its changes are not among that."""
    used = {(stage, name): v for stage, all_ in numbers.items() for name, v in all_.items()}
    deaf = []
    for stage, name, value in variant.changes:
        used[stage, name] = value
        if name in idle.get(stage, {}):
            deaf.append(f"{stage} {name} has no effect: {idle[stage][name]}")
    heard = sorted(
        (stage, name, v)
        for (stage, name), v in used.items()
        if name not in idle.get(stage, {}) and not (stage == "v2v" and stage in variant.skip)
    )
    return (variant.weights, variant.skip, tuple(heard)), deaf


class Bench:
    """Runs variants of one batch of prompts and seeds.

    `seconds` says how long each stage took when it last ran, its compilation included.

    Args:
        numbers: of the full cascade, see `settings.resolve`.
        seeds: one a prompt.
        arms: {arm: {stage: a cascade that runs this stage in the cascade's place}}.
        idle: numbers that are not handed on, since they change nothing.
    """

    def __init__(
        self,
        cascade: Cascade,
        prompts: Sequence[str],
        seeds: Sequence[int],
        numbers: Numbers,
        negative: str = "",
        progress: Progress = silent,
        arms: Mapping[str, Mapping[str, Cascade]] | None = None,
        idle: Idle | None = None,
    ) -> None:
        self._idle = idle or {}
        self.cascade, self.prompts, self.numbers = cascade, list(prompts), numbers
        self.seconds: dict[str, float] = {}
        self._common: dict[str, Any] = {
            "negative": negative,
            "keys": keys.seeds(list(seeds)),
            "progress": progress,
        }
        self._progress, self._arms = progress, arms or {}
        self._held: dict[Any, Any] = {}

    def make(self, variant: Variant) -> generate.Made:
        """What every stage made in this variant, as uint8."""
        numbers = {stage: dict(values) for stage, values in self.numbers.items()}
        for stage, name, value in variant.changes:
            numbers[stage][name] = value
        for stage, names in self._idle.items():
            numbers[stage] = {n: v for n, v in numbers[stage].items() if n not in names}
        prompts, common, skip = self.prompts, self._common, variant.skip
        arm = self._arms[variant.weights] if variant.weights else {}
        own = {stage: arm.get(stage, self.cascade) for stage in numbers}

        def once(stage: str, above: Any, run: Callable[[Given], Any]) -> tuple[Any, Any]:
            who = variant.weights if stage in arm else ""
            key = (stage, who, stage in skip, above, tuple(sorted(numbers[stage].items())))
            if key not in self._held:
                began = time.monotonic()
                self._held[key] = jax.block_until_ready(run(numbers[stage]))
                self.seconds[stage] = time.monotonic() - began
            return key, self._held[key]

        def enlarge(_: Given) -> jax.Array:
            return latents.resize(keyframes, own["v2v"].refined.stage.size)

        def refine(given: Given) -> jax.Array:
            return own["v2v"].v2v(prompts, picture, keyframes, **common, **given)

        def between(given: Given) -> jax.Array | np.ndarray:
            times = int(given["between"]) + 1
            if "vfi" in skip:
                return np.repeat(refined, times, axis=1)[:, : (refined.shape[1] - 1) * times + 1]
            return own["vfi"].vfi(refined, times, progress=self._progress) if times > 1 else refined

        key, picture = once("t2i", None, lambda given: own["t2i"].t2i(prompts, **common, **given))
        key, keyframes = once(
            "i2v", key, lambda given: own["i2v"].i2v(prompts, picture, **common, **given)
        )
        key, refined = once("v2v", key, enlarge if "v2v" in skip else refine)
        _, frames = once("vfi", key, between)
        return generate.Made(*(media.to_uint8(x) for x in (picture, keyframes, refined, frames)))
