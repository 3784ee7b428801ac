"""Spatial UNets: Stable Diffusion 1.5's and SDXL's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mv2_jax.config import UNetConfig
from mv2_jax.convert import published, structure, targets
from mv2_jax.convert.kind import Kind, Layout, Part, claim, shapes
from mv2_jax.convert.kinds.bodies import bodies, family, is_controlnet, is_sparse_control
from mv2_jax.convert.tables import unet


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Part]:
    """The UNets of a source."""
    for names, layout in bodies(source):
        if is_controlnet(names) or is_sparse_control(names):
            continue
        cfg = structure.unet(shapes(source, names), settings)
        table = unet.rules(cfg)
        yield Part("unet", family(cfg), layout, claim(source, names, table), table, cfg)


def layout(bundle: Any, cfg: UNetConfig) -> Layout:
    """diffusers' folder."""
    return published.diffusers(unet.rules(cfg), published.unet(cfg))


KIND = Kind(
    title="a UNet",
    serves="--unet, or with its text encoders --t2i",
    find=find,
    config=UNetConfig,
    target=lambda cfg: targets.unet(cfg)["spatial"],
    layout=layout,
    compare="mv2_jax.convert.compare_networks:unet",
)
