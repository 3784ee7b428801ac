"""Whether the parts of a cascade fit together, said before anything is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mv2_jax.bundle import CONTROLS
from mv2_jax.config import (
    ControlNetConfig,
    ImageProjectionConfig,
    SparseControlConfig,
    UNetConfig,
    VisionConfig,
)
from mv2_jax.convert.kinds.bodies import is_sd2
from mv2_jax.convert.pieces import Piece
from mv2_jax.convert.sources import spec
from mv2_jax.errors import InputError

# What a ControlNet's body and the UNet that it steers have in common.
_BODY = (
    "channels",
    "layers_per_block",
    "transformers",
    "mid_transformers",
    "context_width",
    "pooled_width",
)
# The norm that begins the first motion module of a level, as wide as the level.
_WIDTHS = r"down_blocks\.(\d+)\.motion_modules\.0\.(temporal_transformer\.)?norm\.weight"


def check(built: Mapping[str, Piece]) -> None:
    """Compares what the parts hand to one another.

    Raises:
        InputError: two parts that do not fit; both are named.
    """
    unet = built["spatial"].config
    for name in ("spatial", "t2i_unet"):
        if name in built and is_sd2(built[name].config):
            raise InputError(
                f"{built[name].found.asked} holds an SD2 UNet: Stable Diffusion 2 reads its "
                "prompts otherwise (padding, the layer before the last) and is not supported"
            )
    for name, piece in built.items():
        check = _control if name in CONTROLS else _CHECKS.get(name)
        if check:
            check(piece, unet, built)


def spatial(piece: Piece) -> None:
    """Whether a UNet can be the video stages'. Raises InputError where it cannot."""
    cfg, asked = piece.config, piece.found.asked
    if cfg.in_channels != cfg.out_channels:
        raise InputError(
            f"{asked} is a UNet that takes {cfg.in_channels} channels (inpainting, say); one of "
            f"{cfg.out_channels} is needed"
        )


def _vae(piece: Piece, unet: UNetConfig, built: Mapping[str, Piece]) -> None:
    _same(piece, piece.config.plane_channels, unet.in_channels, "latent channels", "the UNet")


def _picture_vae(piece: Piece, unet: UNetConfig, built: Mapping[str, Piece]) -> None:
    own = built["t2i_unet"].config.in_channels
    _same(piece, piece.config.plane_channels, own, "latent channels", "T2I's UNet")


def _text(piece: Piece, unet: UNetConfig, built: Mapping[str, Piece]) -> None:
    if unet.pooled_width is not None:
        return  # SDXL's two were looked at together
    _same(piece, piece.config.width, unet.context_width, "wide", "the UNet")


def _image_attn(piece: Piece, unet: UNetConfig, built: Mapping[str, Piece]) -> None:
    cfg = piece.config
    _same(piece, cfg.out_width, unet.context_width, "wide", "the UNet")
    if "image_encoder" in built:
        gives = _features(cfg, built["image_encoder"].config)
        _same(piece, cfg.in_width, gives, "features wide", "the image encoder")


def reads(adapter: ImageProjectionConfig, encoder: VisionConfig) -> bool:
    """Whether an IP-Adapter reads features as wide as an encoder gives them."""
    return adapter.in_width == _features(adapter, encoder)


def _features(adapter: ImageProjectionConfig, encoder: VisionConfig) -> int | None:
    return encoder.width if adapter.kind == "resampler" else encoder.projection


def _motion(piece: Piece, unet: UNetConfig, built: Mapping[str, Piece]) -> None:
    # SDXL's modules know three levels, those of SD1.5 four.
    source, widths, mark = piece.found.part.tensors, {}, re.compile(_WIDTHS)
    for name in source:
        match = mark.fullmatch(name)
        if match:
            widths[int(match[1])] = spec(source, name).shape[0]
    theirs = tuple(widths[level] for level in sorted(widths))
    _same(piece, theirs, unet.channels, "widths by level", "the UNet")


def _control(piece: Piece, unet: UNetConfig, built: Mapping[str, Piece]) -> None:
    cfg: ControlNetConfig | SparseControlConfig = piece.config
    for name in _BODY:
        ours, theirs = getattr(cfg.unet, name), getattr(unet, name)
        _same(piece, ours, theirs, name.replace("_", " "), "the UNet")
    if isinstance(cfg, SparseControlConfig):
        _same(piece, cfg.condition_channels, unet.in_channels, "channels given", "the UNet")
        knows = cfg.unet.motion.max_frames
        for stage in ("motion_i2v", "motion_v2v"):
            most = built[stage].config.max_frames if stage in built else 0
            if most > knows:
                raise InputError(
                    f"{piece.found.asked} knows {knows} frames, the motion modules {most}"
                )
    elif "vae" in built and cfg.condition_factor != built["vae"].config.factor:
        raise InputError(
            f"{piece.found.asked} takes pictures {cfg.condition_factor} times the latents' plane, "
            f"but the VAE's are {built['vae'].config.factor} times it"
        )


def _same(piece: Piece, ours: Any, theirs: Any, what: str, other: str) -> None:
    if ours != theirs:
        raise InputError(
            f"{piece.found.asked} ({piece.found.part.title}) does not fit {other}: {what} {ours}, "
            f"not {theirs}"
        )


_CHECKS = {
    "vae": _vae,
    "t2i_vae": _picture_vae,
    "text_encoder": _text,
    "motion_i2v": _motion,
    "motion_v2v": _motion,
    "image_attn": _image_attn,
}
