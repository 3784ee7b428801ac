"""Files of tensors that are known and serve for nothing here, each refused by its own name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mv2_jax.convert.sources import spec


class Refusal(NamedTuple):
    """What a file is that has a tensor for each of these patterns, and what to take instead."""

    what: str
    patterns: tuple[str, ...]
    instead: str = ""


_FACES = "it reads InsightFace's embeddings of faces; plain, Plus and full-face adapters serve"
_REFUSALS = (
    Refusal(
        "AnimateLCM-I2V",
        (r"\bmotion_modules\.", r"^img_encoder\."),
        "its motion modules want an encoder of their own; AnimateLCM's (t2v) serve for --motion",
    ),
    Refusal(
        "an IP-Adapter FaceID",
        (r"^ip_adapter\.\d+\.to_\w+_lora\.|^image_proj\.perceiver_resampler\.",),
        _FACES,
    ),
    Refusal(
        "an IP-Adapter FaceID portrait",
        (r"^image_proj\.proj\.2\.", r"^image_proj\.norm\."),
        _FACES,
    ),
    Refusal(
        "TAESD, a tiny autoencoder for previews",
        (r"^((taesd_)?decoder\.(layers\.)?)?3\.conv\.0\.weight$",),
        "--vae wants the whole one",
    ),
    Refusal(
        "a T2I-Adapter",
        (r"^(adapter\.)?body\.\d+\.(in_conv|block\d|resnets\.\d+)\.?",),
        "ControlNets serve for --controlnet",
    ),
    Refusal(
        "a UNet that is told its guidance, as LCM's whole networks are",
        (r"(^|\.)time_embedding\.cond_proj\.weight$",),
        "that input is not supported; LCM's LoRA over a plain UNet serves",
    ),
    Refusal("a ControlNet-LLLite", (r"^lllite_unet",), "plain ControlNets serve for --controlnet"),
    Refusal(
        "an upscaler (ESRGAN or its kin)", (r"^(model\.\d+|conv_first|body\.\d+\.rdb1)\.",), ""
    ),
)


def by_tensors(source: Mapping[str, Any]) -> str | None:
    """What a file is that is known and serves for nothing; None where it may serve."""
    if any(".motion_modules." in name for name in source) and _conv_in(source) == 9:
        return (
            "this is PIA: its UNet takes the picture in nine channels; AnimateDiff's modules serve"
        )
    uneven = _uneven(source)
    if uneven:
        return (
            f"this is a pruned SDXL UNet (SSD-1B, Segmind-Vega or their kin): {uneven}; whole "
            "ones serve for --unet and --t2i"
        )
    for refusal in _REFUSALS:
        if all(_some(source, pattern) for pattern in refusal.patterns):
            return f"this is {refusal.what}; {refusal.instead}".rstrip("; ")
    return None


def _conv_in(source: Mapping[str, Any]) -> int | None:
    name = next((n for n in source if n.endswith("conv_in.weight")), None)
    shape = spec(source, name).shape if name else ()
    return shape[1] if len(shape) == 4 else None


def _uneven(source: Iterable[str]) -> str:
    """How an SDXL UNet differs from the whole one: a middle without attention, or attentions of one
    level that are of several depths."""
    text = "\n".join(source)
    if not re.search(r"add_embedding\.linear_1\.weight|label_emb\.0\.0\.weight", text):
        return ""
    if "task_embedding" in text or "controlnet" in text or "input_hint_block" in text:
        return ""
    depths: dict[str, dict[str, int]] = {}
    pattern = r"(down_blocks\.\d+|up_blocks\.\d+)\.attentions\.(\d+)\.transformer_blocks\.(\d+)\."
    for block, attention, layer in re.findall(pattern, text):
        held = depths.setdefault(block, {})
        held[attention] = max(held.get(attention, 0), int(layer) + 1)
    for block, held in depths.items():
        if len(set(held.values())) > 1:
            layers = " and ".join(str(n) for n in sorted(set(held.values())))
            return f"{block} has attentions of {layers} layers"
    if depths and "mid_block." in text and "mid_block.attentions." not in text:
        return "its middle has no attention"
    return ""


def _some(names: Iterable[str], pattern: str) -> bool:
    mark = re.compile(pattern)
    return any(mark.search(name) for name in names)
