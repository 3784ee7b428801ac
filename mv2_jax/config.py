"""Frozen, hashable descriptions of every network and stage.

A config says only what changes a program's structure: widths, depths, counts, formulas.
Numbers that a user varies from call to call (guidance, strength, noise prior) are arguments
of the stages instead, so that varying them compiles nothing.

`to_dict` and `from_dict` carry a config through JSON; an unknown field or class is an error
that names the nearest known one. Configs from outside the package go by `module:Class`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mv2_jax import config_types, lookup
from mv2_jax.config_vfi import (
    EDSCConfig,
    EMAVFIConfig,
    GANVFIConfig,
    RefinedRIFEConfig,
    RIFEConfig,
)
from mv2_jax.errors import InputError
from mv2_jax.lookup import find, name_of

USUAL_RULE = "apart"  # the guidance rule of folders that name none


def _later(default: Any) -> Any:
    """A field that cascade folders of before lack. At its default it is left out of their JSON, so
    that a cascade's digest, which sidecars hold, stays what it was."""
    return dataclasses.field(default=default, metadata={"later": True})


@dataclass(frozen=True)
class VAEConfig:
    """AutoencoderKL (Latent Diffusion, arXiv 2112.10752; SD1.5 sizes by default).

    `patch_size` p folds p x p pixels into channels before the first convolution and unfolds them
    after the last; 1 is the public layout. `latent_patch` q folds q x q latents into channels for
    the diffusion networks, as FLUX does. A side shrinks by p * 2**(len(channels) - 1) * q in all.
    `shortcuts` lets pixels and latents bypass each change of resolution (DC-AE's residual
    autoencoding, arXiv 2410.10733; no parameters); the public layout has none.
    `decoder_channels` gives the decoder levels of its own, outermost first, where it is to be
    larger than the encoder (as in arXiv 2306.04632); () is `channels`. Of the same factor its
    patches are then what is left: more levels, smaller patches.
    `scaling_factor` multiplies encoder output (after subtracting `shift_factor`), as in diffusers.

    Raises:
        ValueError: more decoder levels than a cell has halvings.
    """

    in_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    mid_attention: bool = True
    patch_size: int = 1
    latent_patch: int = 1
    shortcuts: bool = False
    decoder_channels: tuple[int, ...] = ()
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0

    def __post_init__(self) -> None:
        if not self.channels or min(self.patch_size, self.latent_patch, *self.channels) < 1:
            raise ValueError("VAEConfig: patches and channels are at least 1")
        own = self.factor // self.latent_patch
        if own % 2 ** (len(self.decoder_levels) - 1):
            raise ValueError(
                f"VAEConfig.decoder_channels: {len(self.decoder_levels)} levels do not fit in a "
                f"factor of {own}"
            )

    @property
    def factor(self) -> int:
        """Pixels along one side of a cell of the diffusion networks' plane."""
        return self.patch_size * 2 ** (len(self.channels) - 1) * self.latent_patch

    @property
    def plane_channels(self) -> int:
        """Channels of that plane."""
        return self.latent_channels * self.latent_patch**2

    @property
    def decoder_levels(self) -> tuple[int, ...]:
        """Widths of the decoder's levels, outermost first."""
        return self.decoder_channels or self.channels

    @property
    def decoder_patch(self) -> int:
        """Pixels along one side of what the decoder unfolds after its last convolution."""
        return self.factor // self.latent_patch // 2 ** (len(self.decoder_levels) - 1)


@dataclass(frozen=True)
class TextConfig:
    """CLIP text encoder (arXiv 2103.00020; CLIP ViT-L/14 sizes by default)."""

    vocab_size: int = 49408
    max_length: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: str = "quick_gelu"  # or "gelu" (exact erf), as OpenCLIP's
    projection: int | None = None  # width of the pooled projection, if any
    eos_token_id: int = 49407
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True)
class VisionConfig:
    """CLIP vision encoder (ViT-H/14 of IP-Adapter by default)."""

    image_size: int = 224
    patch_size: int = 14
    width: int = 1280
    layers: int = 32
    heads: int = 16
    mlp_width: int = 5120
    activation: str = "gelu"
    projection: int | None = 1024
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True)
class ImageProjectionConfig:
    """IP-Adapter's way from an image embedding to context tokens (arXiv 2308.06721).

    kind "linear": one pooled embedding -> `tokens` tokens; "resampler": the encoder's states ->
    `tokens` learned queries (Plus); "full": each state -> a token (full-face, its widths alone).
    """

    kind: str = "resampler"
    in_width: int = 1280
    width: int = 768  # inner width of the resampler
    out_width: int = 768  # cross-attention width of the UNet
    tokens: int = 16
    depth: int = 4
    heads: int = 12
    head_width: int = 64
    mlp_ratio: int = 4


@dataclass(frozen=True)
class MotionConfig:
    """AnimateDiff temporal transformer (arXiv 2307.04725), v3 shape by default.

    `mid_block`: v2 has a motion module there, v1 and v3 do not.
    `norm_scope`, of the modules' own norms: "frame" normalises each frame alone (the original
    code of v1, v2 and v3), "clip" all frames of a clip together (the original code for SDXL, and
    diffusers always).
    `resnet_norm_scope`, of the norms in the UNet's resnets and before its last convolution,
    while these modules are in it: "clip" is what v1 was trained with, "frame" all others.
    """

    max_frames: int = 32
    heads: int = 8
    layers: int = 1
    attentions: int = 2  # self-attention blocks a layer
    mid_block: bool = False
    norm_groups: int = 32
    norm_scope: str = "frame"
    resnet_norm_scope: str = "frame"
    mlp_ratio: int = 4


@dataclass(frozen=True)
class UNetConfig:
    """Stable-Diffusion-shaped UNet (SD1.5 sizes by default), optionally inflated over time.

    Per level, outermost first: `channels`, `heads`, and `transformers`, the number of transformer
    layers in each attention (0: the level has none). `motion` adds temporal transformers after
    every resnet (and attention); `image_tokens` adds decoupled image cross-attention.
    `pooled_width` (SDXL) adds an embedding of pooled text and sizes to the time embedding.
    """

    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    transformers: tuple[int, ...] = (1, 1, 1, 0)
    mid_transformers: int = 1
    heads: tuple[int, ...] = (8, 8, 8, 8)
    context_width: int = 768
    norm_groups: int = 32
    linear_projection: bool = False
    pooled_width: int | None = None  # SDXL: 1280
    size_ids_width: int = 256  # SDXL: width of the sinusoid of each of its six size numbers
    motion: MotionConfig | None = None
    image_tokens: bool = False


@dataclass(frozen=True)
class ControlNetConfig:
    """ControlNet (arXiv 2302.05543) over a UNet of the same shape.

    The condition is RGB in [0, 1], `condition_factor` times the latent plane along each side;
    `condition_channels` are the widths of the stride-2 convolutions that bring it down, of pixels
    folded by `condition_patch` (1: the public layout). `global_pool`: means of residuals over the
    plane, which steer what is told the prompt. `types`: of a Union, which `type_layers` tell apart.
    """

    unet: UNetConfig = UNetConfig()
    condition_channels: tuple[int, ...] = (16, 32, 96, 256)
    condition_patch: int = 1
    global_pool: bool = _later(False)
    types: int = _later(0)
    type_layers: int = _later(0)

    @property
    def condition_factor(self) -> int:
        return self.condition_patch * 2 ** (len(self.condition_channels) - 1)


@dataclass(frozen=True)
class SparseControlConfig:
    """SparseCtrl with latents as its condition (arXiv 2311.16933), the RGB encoder by default.

    `unet` is its body, with motion modules of one self-attention a layer and none in the middle;
    `condition_channels` are those of a given frame's latent, the mask's not counted.
    """

    unet: UNetConfig = UNetConfig(motion=MotionConfig(attentions=1))
    condition_channels: int = 4


@dataclass(frozen=True)
class ScheduleConfig:
    """A discrete variance-preserving noise schedule.

    `kind`: "linear" or "scaled_linear" in beta (diffusers' words).
    `zero_terminal_snr` rescales it so that the last step is pure noise (arXiv 2305.08891).
    `prediction`: what the network outputs, "eps", "v" or "x0".
    `spacing`: "leading", "linspace" or "trailing", with `steps_offset`, as in diffusers.
    `final_alpha_one`: DDIM's last step goes to no noise at all (diffusers' `set_alpha_to_one`);
    False goes to timestep 0's small rest of noise, as SD1.5 is published.
    """

    kind: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_steps: int = 1000
    zero_terminal_snr: bool = False
    prediction: str = "eps"
    spacing: str = "leading"
    steps_offset: int = 1
    final_alpha_one: bool = False


@dataclass(frozen=True)
class StageConfig:
    """What T2I, I2V and V2V each need beside their weights.

    `schedule` is the process: a ScheduleConfig, or another of `diffusion.process` or one's own.
    `size` is (height, width) in pixels and `frames` the frames made (1 for T2I).
    `steps`, `sampler`: the default sampling program.
    `clip_skip`: last layers of the text encoder left out, in diffusers' counting.
    Clips longer than `window` frames (None: what the motion modules know) go in windows
    (`diffusion.windows`) that overlap by `overlap` (None: a quarter). `tile`: see `stages.latents`.
    `unet`: the backbone; a UNet's config, or a backbone of one's own (`models.backbone`).
    `rule`: of guidance, a word of `diffusion.names.RULES` or `module:name`; None: `USUAL_RULE`.
    `conditions`: what it is told, in order: "text", "image", "control", or conditions of one's own
    (`stages.conditions`); None: the text, and but for T2I the picture's tokens and control.
    """

    unet: Any
    schedule: Any
    size: tuple[int, int]
    frames: int = 1
    steps: int = 25
    sampler: str = "ddim"
    clip_skip: int = 0
    window: int | None = None
    overlap: int | None = None
    blend: str = "pyramid"
    rule: str | None = _later(None)
    conditions: tuple[Any, ...] | None = _later(None)
    context: str = _later("static")
    tile: int = _later(0)

    def __post_init__(self) -> None:
        if min(*self.size, self.frames, self.steps) < 1:
            raise ValueError("StageConfig: a side, frames and steps are at least 1")

    def ruled(self, before: str | None, after: str | None) -> StageConfig:
        """With another guidance rule where it is `before`."""
        return dataclasses.replace(self, rule=after) if self.rule == before else self

    @property
    def windows(self) -> tuple[int, int]:
        """Frames of a motion window, and of an overlap of two."""
        own = self.unet.motion if isinstance(self.unet, UNetConfig) else self.unet
        known = getattr(own, "max_frames", None) or getattr(own, "frames", None) or self.frames
        window = known if self.window is None else self.window
        return window, window // 4 if self.overlap is None else self.overlap


@dataclass(frozen=True)
class JudgeConfig:
    """The toybox's judge: classifiers of single frames, `size` x `size`, and of whole clips,
    `frames` frames of half that. Channels are widths at 1/4 of `size`, 1/8, and so on."""

    size: int = 64
    frames: int = 8
    frame_channels: tuple[int, ...] = (48, 96)
    motion_channels: tuple[int, ...] = (64, 80, 96)
    hidden: int = 96


# What lies above this file goes by its address, and is imported when it is asked for.
CLASSES: dict[str, type | str] = {
    "EDM": "mv2_jax.diffusion.process:EDM",
    "Flow": "mv2_jax.diffusion.process:Flow",
    "LossConfig": "mv2_jax.diffusion.losses:LossConfig",
}
CLASSES |= {
    cls.__name__: cls
    for cls in (
        VAEConfig,
        TextConfig,
        VisionConfig,
        ImageProjectionConfig,
        MotionConfig,
        UNetConfig,
        ControlNetConfig,
        SparseControlConfig,
        RIFEConfig,
        RefinedRIFEConfig,
        EMAVFIConfig,
        EDSCConfig,
        GANVFIConfig,
        ScheduleConfig,
        StageConfig,
        JudgeConfig,
    )
}


def to_dict(config: Any) -> dict[str, Any]:
    """A JSON-ready dict with the class under 'class'. Inverse of `from_dict`.

    The class is told by its short name, or as `module:Class` where it is none of the package's.
    """
    out: dict[str, Any] = {"class": name_of(type(config), CLASSES)}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not (field.metadata.get("later") and value == field.default):
            out[field.name] = _to_json(value)
    return out


def from_dict(data: dict[str, Any]) -> Any:
    """A config from `to_dict`'s form.

    Raises:
        ValueError: an unknown class or field (the message names the nearest known one), a class
            that cannot be imported, or one that is no frozen dataclass; a value that does not fit
            its field, or one that is missing.
    """
    if not isinstance(data, dict):
        raise ValueError(f"a config is an object with a class, not {data!r}")
    data = dict(data)
    name = data.pop("class", None)
    cls = find(name, CLASSES, "config class", fits=_is_config, wants="a frozen dataclass")
    fields = {field.name for field in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise InputError(f"{name} has no field {key!r}{lookup.nearest(key, fields)}")
    values = {key: _from_json(value) for key, value in data.items()}
    config_types.check(cls, values)
    for field in dataclasses.fields(cls):
        unset = field.default is field.default_factory is dataclasses.MISSING
        if unset and field.name not in values:
            raise ValueError(f"{name} lacks its {field.name!r}")
    return cls(**values)


def _is_config(cls: Any) -> bool:
    made = getattr(cls, "__dataclass_params__", None)
    return isinstance(cls, type) and made is not None and made.frozen


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_to_json(part) for part in value] if isinstance(value, tuple) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return from_dict(value)
    return tuple(_from_json(part) for part in value) if isinstance(value, list) else value
