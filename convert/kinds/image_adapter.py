"""IP-Adapters: an image projection, and keys and values for a UNet's attentions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mv2_jax.config import ImageProjectionConfig, VisionConfig
from mv2_jax.convert import config_from_shapes, diffusers_config
from mv2_jax.convert.engine import under
from mv2_jax.convert.kind import FileNetwork, Kind, Layout, Torch, below, same, shapes
from mv2_jax.convert.sources import View
from mv2_jax.convert.tables import ip_adapter, ip_attention
from mv2_jax.errors import InputError

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle
    from mv2_jax.convert.pending import PendingNetwork


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[FileNetwork]:
    """The IP-Adapter of a source."""
    if not any(name.startswith("ip_adapter.") for name in source):
        return
    try:
        prefix, inner = ip_adapter.find(source)
    except ValueError as error:
        raise InputError(str(error)) from None
    cfg = config_from_shapes.image_projection(shapes(source, below(source, prefix)))
    names = {name: name for name in source if name.startswith((prefix, "ip_adapter."))}
    name = {"linear": "", "resampler": "-Plus", "full": " full-face"}[cfg.kind]
    title = f"an IP-Adapter{name} ({cfg.tokens or 'all'} tokens of width {cfg.out_width})"
    # The attention's half of the table depends on the UNet it will stand in.
    table = under(inner, prefix, "projection/")
    yield FileNetwork("image_adapter", title, "IP-Adapter's", View(source, names), table, cfg)


def layout(bundle: Bundle, cfg: ImageProjectionConfig) -> Layout:
    """The one file that `load_ip_adapter` takes."""
    diffusers_config.adapter(cfg)
    kinds = {
        "linear": ip_adapter.original_linear,
        "resampler": ip_adapter.original_resampler,
        "full": ip_adapter.original_full,
    }
    spatial = dataclasses.replace(bundle.config("spatial"), image_tokens=True)
    table = [
        *under(kinds[cfg.kind](), "image_proj.", "projection/"),
        *under(ip_attention.rules(spatial), target="unet/"),
    ]
    return Layout(table, "", None)


def fits(name: str, network: PendingNetwork, built: Mapping[str, PendingNetwork]) -> None:
    """Whether its tokens are as wide as the UNet's text, and it reads what the encoder gives."""
    cfg = network.config
    same(network, cfg.out_width, built["spatial"].config.context_width, "wide", "the UNet")
    if "image_encoder" in built:
        gives = _features(cfg, built["image_encoder"].config)
        same(network, cfg.in_width, gives, "features wide", "the image encoder")


def reads(adapter: ImageProjectionConfig, encoder: VisionConfig) -> bool:
    """Whether an IP-Adapter reads features as wide as an encoder gives them."""
    return adapter.in_width == _features(adapter, encoder)


def _features(adapter: ImageProjectionConfig, encoder: VisionConfig) -> int | None:
    return encoder.projection if adapter.kind == "linear" else encoder.width


KIND = Kind(
    title="an IP-Adapter",
    serves="--image-adapter",
    find=find,
    config=ImageProjectionConfig,
    layout=layout,
    fits=fits,
    torch=Torch(compare="mv2_jax.convert.compare_networks:adapter"),
)
