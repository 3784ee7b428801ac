"""ControlNets on pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mv2_jax.config import ControlNetConfig
from mv2_jax.convert import published, structure, targets
from mv2_jax.convert.kind import Kind, Layout, Part, claim, shapes
from mv2_jax.convert.kinds.bodies import bodies, family, is_controlnet
from mv2_jax.convert.tables import controlnet
from mv2_jax.errors import InputError


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Part]:
    """The ControlNets of a source."""
    for names, layout in bodies(source):
        if not is_controlnet(names):
            continue
        if any(".motion_modules." in name for name in names):
            raise InputError(
                "this is SparseCtrl's encoder of scribbles; the one of pictures (RGB) is known here"
            )
        cfg = structure.controlnet(shapes(source, names), settings)
        table = controlnet.rules(cfg)
        title = f"a ControlNet for {family(cfg.unet)}"
        yield Part("controlnet", title, layout, claim(source, names, table), table, cfg)


def layout(bundle: Any, cfg: ControlNetConfig) -> Layout:
    """diffusers' folder."""
    return published.diffusers(controlnet.rules(cfg), published.controlnet(cfg))


KIND = Kind(
    title="a ControlNet",
    serves="--controlnet",
    find=find,
    config=ControlNetConfig,
    target=targets.controlnet,
    layout=layout,
    compare="mv2_jax.convert.compare_networks:control",
)
