"""ControlNets on pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mv2_jax.config import ControlNetConfig
from mv2_jax.convert import config_from_shapes, diffusers_config, param_shapes
from mv2_jax.convert.kind import FileNetwork, Kind, Layout, Torch, claim, shapes
from mv2_jax.convert.kinds.bodies import LDM, bodies, family, is_controlnet, steers, unsaid
from mv2_jax.convert.tables import controlnet
from mv2_jax.errors import InputError

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle
    from mv2_jax.convert.pending import PendingNetwork


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[FileNetwork]:
    """The ControlNets of a source."""
    for names, layout in bodies(source):
        if not is_controlnet(names):
            continue
        if any(".motion_modules." in name for name in names):
            raise InputError(
                "this is SparseCtrl's encoder of scribbles; the one of pictures (RGB) is known here"
            )
        cfg = config_from_shapes.controlnet(shapes(source, names), settings)
        table = controlnet.rules(cfg)
        union = f" Union ({cfg.types} kinds of pictures)" if cfg.types else ""
        title = f"a ControlNet{union} for {family(cfg.unet)}"
        yield FileNetwork("controlnet", title, layout, claim(source, names, table), table, cfg)


def layout(bundle: Bundle, cfg: ControlNetConfig) -> Layout:
    """diffusers' folder."""
    return diffusers_config.diffusers(controlnet.rules(cfg), diffusers_config.controlnet(cfg))


def fits(name: str, network: PendingNetwork, built: Mapping[str, PendingNetwork]) -> None:
    """Whether its body is the UNet's, and its pictures of the VAE's size."""
    steers(network, built)
    factor = network.config.condition_factor
    if "vae" in built and factor != built["vae"].config.factor:
        raise InputError(
            f"{network.found.asked} takes pictures {factor} times the latents' plane, "
            f"but the VAE's are {built['vae'].config.factor} times it"
        )


KIND = Kind(
    title="a ControlNet",
    serves="--controlnet",
    find=find,
    config=ControlNetConfig,
    target=param_shapes.controlnet,
    layout=layout,
    fits=fits,
    torch=Torch(
        compare="mv2_jax.convert.compare_networks:control",
        published=lambda cfg, unet: diffusers_config.controlnet(cfg),
        unsaid=lambda cfg: unsaid(cfg.unet),
        converters={LDM: "mv2_jax.convert.reference:ldm_controlnet"},
    ),
)
