"""Spatial UNets: Stable Diffusion 1.5's and SDXL's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mv2_jax.config import UNetConfig
from mv2_jax.convert import config_from_shapes, diffusers_config, lora_layers, param_shapes
from mv2_jax.convert.kind import FileNetwork, Kind, Layout, Torch, claim, shapes
from mv2_jax.convert.kinds.bodies import (
    LDM,
    bodies,
    family,
    is_controlnet,
    is_sd2,
    is_sparse_control,
    unsaid,
)
from mv2_jax.convert.tables import unet
from mv2_jax.errors import InputError

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle
    from mv2_jax.convert.pending import PendingNetwork


_MOVING = re.compile(r"\.(motion_modules|temporal_attentions)\.")


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[FileNetwork]:
    """The UNets of a source."""
    for names, layout in bodies(source):
        if is_controlnet(names) or is_sparse_control(names):
            continue
        # The modules of a UNetMotionModel and of Hotshot-XL's UNet are a kind of their own.
        names = {n: old for n, old in names.items() if not _MOVING.search(n)}
        cfg = config_from_shapes.unet(shapes(source, names), settings)
        table = unet.rules(cfg)
        yield FileNetwork("unet", family(cfg), layout, claim(source, names, table), table, cfg)


def layout(bundle: Bundle, cfg: UNetConfig) -> Layout:
    """diffusers' folder."""
    return diffusers_config.diffusers(unet.rules(cfg), diffusers_config.unet(cfg))


def fits(name: str, network: PendingNetwork, built: Mapping[str, PendingNetwork]) -> None:
    """Whether it can be the video stages', or T2I's own."""
    cfg, asked = network.config, network.found.asked
    if name == "spatial" and cfg.in_channels != cfg.out_channels:
        raise InputError(
            f"{asked} is a UNet that takes {cfg.in_channels} channels (inpainting, say); one of "
            f"{cfg.out_channels} is needed"
        )
    if is_sd2(cfg):
        raise InputError(
            f"{asked} holds an SD2 UNet: Stable Diffusion 2 reads its prompts otherwise (padding, "
            "the layer before the last) and is not supported"
        )


KIND = Kind(
    title="a UNet",
    serves="--unet, or with its text encoders --t2i",
    find=find,
    config=UNetConfig,
    target=lambda cfg: param_shapes.unet(cfg)["spatial"],
    layout=layout,
    fits=fits,
    layers=lora_layers.Layers.of_unet,
    torch=Torch(
        compare="mv2_jax.convert.compare_networks:unet",
        published=lambda cfg, unet: diffusers_config.unet(cfg),
        unsaid=unsaid,
        converters={LDM: "mv2_jax.convert.reference:ldm_unet"},
        prefixes=lambda cfg: ("lora_unet_", "unet."),
    ),
)
