"""SparseCtrl's encoder of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mv2_jax.config import SparseControlConfig
from mv2_jax.convert import config_from_shapes, diffusers_config, param_shapes
from mv2_jax.convert.kind import FileNetwork, Kind, Layout, Torch, claim, same, shapes
from mv2_jax.convert.kinds.bodies import bodies, is_sparse_control, steers, unsaid
from mv2_jax.convert.tables import sparse_control
from mv2_jax.errors import InputError

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle
    from mv2_jax.convert.pending import PendingNetwork


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[FileNetwork]:
    """The SparseCtrl encoders of a source."""
    for names, layout in bodies(source):
        if is_sparse_control(names):
            cfg = config_from_shapes.sparse_control(shapes(source, names), settings)
            table = sparse_control.find(names, cfg)
            tensors = claim(source, names, table)
            title = "a SparseCtrl encoder of pictures"
            yield FileNetwork("sparse_control", title, layout, tensors, table, cfg)


def layout(bundle: Bundle, cfg: SparseControlConfig) -> Layout:
    """diffusers' folder."""
    return diffusers_config.diffusers(
        sparse_control.diffusers(cfg), diffusers_config.sparse_control(cfg)
    )


def fits(name: str, network: PendingNetwork, built: Mapping[str, PendingNetwork]) -> None:
    """Whether its body is the UNet's, and it knows as many frames as the motion modules."""
    steers(network, built)
    cfg, channels = network.config, built["spatial"].config.in_channels
    same(network, cfg.condition_channels, channels, "channels given", "the UNet")
    knows = cfg.unet.motion.max_frames
    for stage in ("motion_i2v", "motion_v2v"):
        most = built[stage].config.max_frames if stage in built else 0
        if most > knows:
            raise InputError(
                f"{network.found.asked} knows {knows} frames, the motion modules {most}"
            )


KIND = Kind(
    title="a SparseCtrl encoder",
    serves="--controlnet",
    find=find,
    config=SparseControlConfig,
    fills="controlnet",
    target=param_shapes.sparse_control,
    layout=layout,
    fits=fits,
    torch=Torch(
        compare="mv2_jax.convert.compare_networks:sparse",
        published=lambda cfg, unet: diffusers_config.sparse_control(cfg),
        unsaid=lambda cfg: unsaid(cfg.unet),
        converters={"diffusers": "mv2_jax.convert.reference:sparse_control"},
    ),
)
