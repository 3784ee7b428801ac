"""IP-Adapters: an image projection, and keys and values for a UNet's attentions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mv2_jax.config import ImageProjectionConfig
from mv2_jax.convert import structure
from mv2_jax.convert.engine import under
from mv2_jax.convert.kind import Kind, Layout, Part, below, shapes
from mv2_jax.convert.sources import View
from mv2_jax.convert.tables import ip_adapter, ip_attention
from mv2_jax.errors import InputError


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Part]:
    """The IP-Adapter of a source."""
    if not any(name.startswith("ip_adapter.") for name in source):
        return
    try:
        prefix, inner = ip_adapter.find(source)
    except ValueError as error:
        raise InputError(str(error)) from None
    cfg = structure.image_projection(shapes(source, below(source, prefix)))
    names = {name: name for name in source if name.startswith((prefix, "ip_adapter."))}
    plus = "-Plus" if cfg.kind == "resampler" else ""
    title = f"an IP-Adapter{plus} ({cfg.tokens} tokens of width {cfg.out_width})"
    # The attention's half of the table depends on the UNet it will stand in.
    table = under(inner, prefix, "projection/")
    yield Part("image_adapter", title, "IP-Adapter's", View(source, names), table, cfg)


def layout(bundle: Any, cfg: ImageProjectionConfig) -> Layout:
    """The one file that `load_ip_adapter` takes."""
    kinds = {"linear": ip_adapter.original_linear, "resampler": ip_adapter.original_resampler}
    spatial = dataclasses.replace(bundle.config("spatial"), image_tokens=True)
    table = [
        *under(kinds[cfg.kind](), "image_proj.", "projection/"),
        *under(ip_attention.rules(spatial), target="unet/"),
    ]
    return Layout(table, "", None)


KIND = Kind(
    title="an IP-Adapter",
    serves="--image-adapter",
    find=find,
    config=ImageProjectionConfig,
    layout=layout,
    compare="mv2_jax.convert.compare_networks:adapter",
)
