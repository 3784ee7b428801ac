"""The numbers of a generation, a frozen dataclass a stage: their defaults, limits and words.

A cascade folder stores those that its weights like best; `Cascade`'s methods, `mv2 generate`, its
help and sidecars all read them from here. Each is traced (or a count of steps or frames), so that
a user may vary it from call to call. What a number may be is in `mv2_jax.number_kinds`. Nothing
here imports JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from mv2_jax.errors import InputError
from mv2_jax.lookup import nearest, one_of
from mv2_jax.number_kinds import About, Each, FrameWeights, Size, Word


def _number(
    default: Any, kind: type, low: float, high: float, words: str, of: type = About, **more: Any
) -> Any:
    return dataclasses.field(
        default=default, metadata={"about": of(kind, low, high, words, **more)}
    )


def _word(default: str, known: tuple[str, ...], words: str, **more: Any) -> Any:
    return _number(default, str, 0, 0, words, Word, known=known, **more)


# What pictures show to a ControlNet Union, in its publisher's order: "softedge" stands for thick
# lines (scribbles, HED), "canny" for thin ones; its first release has no tile and no repaint.
CONTROL_TYPES = ("openpose", "depth", "softedge", "canny", "normal", "segment", "tile", "repaint")


@dataclass(frozen=True)
class Guided:
    """What every diffusion stage has. `steps` None: as many as its config says."""

    steps: int | None = _number(
        None, int, 1, 1000, "denoising steps of a full chain", own_flag=True
    )
    guidance: float = _number(
        7.5,
        float,
        0,
        100,
        "guidance scale of the text: higher follows it more closely",
        own_flag=True,
    )
    guidance_rescale: float = _number(
        0.0, float, 0, 1, "rescale guided outputs towards the spread of unguided ones"
    )
    guidance_low: float = _number(
        0.0,
        float,
        0,
        1e6,
        "apply guidance only at noise-to-signal ratios of N and more",
    )
    guidance_high: float = _number(0.0, float, 0, 1e6, "... and of N and less (0: no limit)")
    cache_interval: int = _number(
        1,
        int,
        1,
        1000,
        "DeepCache: run the whole network only every N steps, and its outer blocks in between",
        own_flag=True,
    )
    cache_branch: int = _number(
        0,
        int,
        0,
        99,
        "DeepCache: how deep those outer blocks go; 0, only the last one, is the fastest",
    )
    original_size: str = _number(
        "", str, 0, 0, "SDXL's size condition: width and height of the original picture", Size
    )
    target_size: str = _number("", str, 0, 0, "... width and height of the picture to make", Size)
    crop: str = _number("", str, 0, 0, "... pixels cropped from its left and its top", Size)
    empty_text: str = _word(
        "zeros", ("zeros", "encoded"), "SDXL's text states for an empty (negative) prompt"
    )


@dataclass(frozen=True)
class Pictured(Guided):
    """What the video stages have beside."""

    image_guidance: float = _number(1.0, float, 0, 100, "guidance scale of the picture")
    image_scale: float = _number(
        1.0, float, 0, 4, "weight of the image tokens (IP-Adapter's scale)"
    )
    image_start: float = _number(
        0.0, float, 0, 1, "use the image tokens from this fraction of the steps on"
    )
    image_end: float = _number(1.0, float, 0, 1, "... and up to this fraction")
    image_frames: str = _number(
        "", float, 0, 4, "weight of the image tokens by frame", FrameWeights
    )
    control_scale: float | tuple[float, ...] = _number(
        1.0, float, 0, 4, "weight of the ControlNet; 0.8,0.5 for two of them", Each
    )
    control_start: float | tuple[float, ...] = _number(
        0.0, float, 0, 1, "use the ControlNet from this fraction of the steps on", Each
    )
    control_end: float | tuple[float, ...] = _number(
        1.0, float, 0, 1, "... and up to this fraction", Each
    )
    control_frames: str = _number(
        "",
        float,
        0,
        4,
        "weight of the ControlNet by frame; 0:1,8:0;0:1 for two of them",
        FrameWeights,
    )
    control_type: str = _word(
        "tile",
        CONTROL_TYPES,
        "what the picture of a ControlNet Union shows; several with commas, one a ControlNet",
    )
    motion_scale: float = _number(
        1.0, float, 0, 10, "strength of motion: scales the keys of temporal attention"
    )
    motion_frames: str = _number(
        "",
        float,
        0,
        10,
        "strength of motion by frame, a factor of --motion-scale",
        FrameWeights,
    )


@dataclass(frozen=True)
class T2I(Guided):
    """The picture's."""


@dataclass(frozen=True)
class I2V(Pictured):
    """The keyframes'."""

    control_sees: str = _word(
        "picture",
        ("picture", "first"),
        "the ControlNet's input: the picture on all frames, or on the first only",
        own_flag=True,
    )
    noise_prior: float = _number(
        0.0, float, 0, 1, "share of the picture's latent in the initial noise"
    )
    free_init: int = _number(
        0,
        int,
        0,
        10,
        "FreeInit: how many times to sample again from the low frequencies of the result",
    )


@dataclass(frozen=True)
class V2V(Pictured):
    """The refined clip's."""

    control_sees: str = _word(
        "picture",
        ("picture", "first", "keyframes"),
        "the ControlNet's input: the picture on all frames or on the first only, or each "
        "keyframe itself (for tile ControlNets)",
        own_flag=True,
    )
    strength: float = _number(
        0.5, float, 0, 1, "how much to change the keyframes: 0 keeps them", own_flag=True
    )


@dataclass(frozen=True)
class VFI:
    """The smooth video's."""

    between: int = _number(2, int, 0, 15, "frames to insert between two keyframes")
    fps: float = _number(12.0, float, 0.1, 240, "frames per second of the video")


Stage = T2I | I2V | V2V | VFI
"""A stage's numbers; `Guided` are those of one that denoises, `Pictured` of a video stage."""
Video = I2V | V2V
STAGES: dict[str, type[Stage]] = {"t2i": T2I, "i2v": I2V, "v2v": V2V, "vfi": VFI}
DIFFUSION = ("t2i", "i2v", "v2v")  # those of them that denoise
Numbers = dict[str, Stage]
"""{stage: its numbers}."""
_Same = TypeVar("_Same", bound=Guided | VFI)


def about(stage: str) -> dict[str, About]:
    """What a stage's numbers are, by name."""
    return {f.name: f.metadata["about"] for f in dataclasses.fields(STAGES[stage])}


def changed(stage: str, numbers: _Same, changes: Mapping[str, Any], where: str = "") -> _Same:
    """The dataclass with some numbers changed; None leaves one as it is.

    Args:
        where: what the changes are of, for the errors.

    Raises:
        InputError: a name that the stage does not have (the nearest is named), or a number of
            another kind or out of range.
    """
    known, made = about(stage), {}
    prefix = f"{where}: " if where else ""
    for name, value in changes.items():
        if name not in known:
            raise InputError(f"{prefix}{stage} has no setting {name!r}{nearest(name, known)}")
        if value is not None:
            made[name] = known[name].check(value, f"{prefix}{stage} {name}")
    return dataclasses.replace(numbers, **made)


def guided(numbers: Numbers, stage: str) -> Guided:
    """A diffusion stage's numbers. Raises ValueError for a stage that denoises nothing."""
    own = numbers[stage]
    if not isinstance(own, Guided):
        raise ValueError(f"{stage} denoises nothing (these do: {', '.join(DIFFUSION)})")
    return own


def read(stored: Mapping[str, Mapping[str, Any]], where: str) -> Numbers:
    """Every stage's numbers, from those that a cascade folder stores.

    Raises:
        InputError: as `changed`, or a stage that there is not.
    """
    check_stages(stored, where)
    return {
        stage: changed(stage, cls(), stored.get(stage, {}), where) for stage, cls in STAGES.items()
    }


def check_stages(stored: Iterable[str], where: str) -> None:
    """Raises InputError for a stage that there is not; the nearest is named."""
    for stage in stored:
        one_of(stage, STAGES, "stage", where)


def usual() -> Numbers:
    """Every stage's numbers where no weights say otherwise."""
    return read({}, "")
