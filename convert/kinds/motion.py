"""AnimateDiff's motion modules, and Hotshot-XL's, which are built like them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mv2_jax.config import MotionConfig
from mv2_jax.convert import config_from_shapes, diffusers_config, lora_layers
from mv2_jax.convert.kind import FileNetwork, Kind, Layout, Torch, claim, same, shapes
from mv2_jax.convert.sources import spec
from mv2_jax.convert.tables import motion
from mv2_jax.errors import InputError

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle
    from mv2_jax.convert.compare_networks import Job
    from mv2_jax.convert.pending import PendingNetwork

ANIMATEDIFF, HOTSHOT = "AnimateDiff's", "Hotshot-XL's"
# The norm that begins the first motion module of a level, as wide as the level.
_WIDTHS = r"down_blocks\.(\d+)\.motion_modules\.0\.(temporal_transformer\.)?norm\.weight"


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[FileNetwork]:
    """The motion modules of a source; SparseCtrl's own are not theirs."""
    is_sparse = any(name.endswith("controlnet_cond_embedding.weight") for name in source)
    translated = motion.hotshot(source)
    names = translated or {name: name for name in source}
    if is_sparse or not any(".motion_modules." in name for name in names):
        return
    try:
        table = motion.find(names)
        cfg = config_from_shapes.motion_modules(shapes(source, names), settings)
        original = motion.layout(names).original
    except ValueError as error:
        raise InputError(str(error)) from None
    if translated:  # its code takes norms over each frame
        cfg = dataclasses.replace(cfg, norm_scope="frame", resnet_norm_scope="frame")
    middle = "a" if cfg.mid_block else "no"
    title = f"motion modules ({cfg.max_frames} frames, {middle} middle block)"
    layout = HOTSHOT if translated else ANIMATEDIFF if original else "diffusers"
    yield FileNetwork("motion", title, layout, claim(source, names, table), table, cfg)


def layout(bundle: Bundle, cfg: MotionConfig) -> Layout:
    """diffusers' MotionAdapter, for the cascade's UNet."""
    settings = diffusers_config.motion(cfg, bundle.config("spatial"))
    return diffusers_config.diffusers(motion.diffusers(cfg.attentions), settings)


def fits(name: str, network: PendingNetwork, built: Mapping[str, PendingNetwork]) -> None:
    """Whether they are as wide as the UNet's levels: SDXL's modules know three, SD1.5's four."""
    source, widths, mark = network.found.part.tensors, {}, re.compile(_WIDTHS)
    for tensor in source:
        match = mark.fullmatch(tensor)
        if match:
            widths[int(match[1])] = spec(source, tensor).shape[0]
    theirs = tuple(widths[level] for level in sorted(widths))
    same(network, theirs, built["spatial"].config.channels, "widths by level", "the UNet")


def expected(job: Job) -> dict[str, Any]:
    """Over what AnimateDiff's own code takes norms, and whether there is a middle block."""
    from mv2_jax.convert import reference

    norm, resnets = reference.norm_scopes(job.network)
    middle = any(name.startswith("mid_block.") for name in reference.state(job.network.found))
    scope = job.scope or norm
    return {"norm_scope": scope, "resnet_norm_scope": resnets, "mid_block": middle}


KIND = Kind(
    title="motion modules",
    serves="--motion or --motion-v2v",
    find=find,
    config=MotionConfig,
    layout=layout,
    fits=fits,
    layers=lora_layers.Layers.of_motion,
    torch=Torch(
        compare="mv2_jax.convert.compare_networks:motion",
        published=diffusers_config.motion,
        unsaid=lambda cfg: {"motion_num_attention_heads": 8, "motion_norm_num_groups": 32},
        converters={
            ANIMATEDIFF: "mv2_jax.convert.reference:motion_modules",
            HOTSHOT: "mv2_jax.convert.reference:hotshot_modules",
        },
        expected=expected,
        prefixes=lambda cfg: ("unet.",),
    ),
)
