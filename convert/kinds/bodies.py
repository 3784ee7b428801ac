"""Networks with a UNet's body: UNets, ControlNets and SparseCtrl, in diffusers' names or LDM's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mv2_jax.config import UNetConfig
from mv2_jax.convert import ldm
from mv2_jax.convert.kind import below, prefixes, same, translated

if TYPE_CHECKING:
    from mv2_jax.convert.pending import PendingNetwork

LDM = "a single file's (LDM)"
# What a ControlNet's body and the UNet that it steers have in common.
_BODY = (
    "channels",
    "layers_per_block",
    "transformers",
    "mid_transformers",
    "context_width",
    "pooled_width",
)


def bodies(source: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], str]]:
    """({name in diffusers' words: name in the source}, whose names those are) of every body."""
    for prefix in prefixes(source, "time_embedding.linear_1.weight"):
        yield below(source, prefix), "diffusers"
    for prefix in prefixes(source, "input_blocks.0.0.weight"):
        names = below(source, prefix)
        if "input_hint_block.0.weight" in names:
            yield translated(names, ldm.controlnet_modules), LDM
        else:
            yield translated(names, lambda n: ldm.unet_modules(*ldm.unet_counts(n))), LDM


def is_controlnet(names: Mapping[str, str]) -> bool:
    """Whether a body is a ControlNet's."""
    return "controlnet_cond_embedding.conv_in.weight" in names


def is_sparse_control(names: Mapping[str, str]) -> bool:
    """Whether a body is that of SparseCtrl's encoder of latents."""
    return "controlnet_cond_embedding.weight" in names


def is_sd2(cfg: UNetConfig) -> bool:
    """Whether a UNet is Stable Diffusion 2's: linear projections, text of OpenCLIP's width."""
    return cfg.pooled_width is None and cfg.linear_projection and cfg.context_width == 1024


def unsaid(cfg: UNetConfig) -> dict[str, Any]:
    """What no tensor's shape says of a body, as the publishers' own configs have it."""
    # CompVis' v1-inference.yaml has 8 heads; sd_xl_base.yaml has heads of 64 channels.
    wide = [width // 64 or 1 for width in cfg.channels]
    return {"attention_head_dim": wide if cfg.linear_projection else 8, "norm_num_groups": 32}


def steers(network: PendingNetwork, built: Mapping[str, PendingNetwork]) -> None:
    """Refuses a ControlNet, or its like, whose body is not that of the UNet it is to steer."""
    for name in _BODY:
        ours, theirs = (
            getattr(cfg, name) for cfg in (network.config.unet, built["spatial"].config)
        )
        same(network, ours, theirs, name.replace("_", " "), "the UNet")


def family(cfg: UNetConfig) -> str:
    """A UNet's family, by what its cross-attention reads."""
    if cfg.pooled_width is not None:
        name = "an SDXL UNet" if cfg.context_width == 2048 else "a UNet of SDXL's kind"
    elif cfg.linear_projection:
        name = "an SD2 UNet" if is_sd2(cfg) else "a UNet of SD2's kind"
    else:
        name = "an SD1.5 UNet" if cfg.context_width == 768 else "a UNet of SD1.5's kind"
    return name if cfg.in_channels == 4 else f"{name} of {cfg.in_channels} input channels"
