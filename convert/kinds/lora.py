"""LoRAs of spatial weights and of motion modules, which are merged into other networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mv2_jax.convert import lora_read
from mv2_jax.convert.kind import FileNetwork, Kind


def find_spatial(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[FileNetwork]:
    """A file that is a LoRA of spatial weights or of text encoders."""
    if _is_lora(source) and not _moving(source):
        yield FileNetwork("lora", "a LoRA", "", source, [], None)


def find_motion(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[FileNetwork]:
    """A file that is a Motion-LoRA."""
    if _is_lora(source) and _moving(source):
        yield FileNetwork("motion_lora", "a Motion-LoRA", "", source, [], None)


def _is_lora(source: Mapping[str, Any]) -> bool:
    # FaceID adapters hold LoRAs of their own, and are refused as adapters.
    adapter = any(name.startswith(("image_proj.", "ip_adapter.")) for name in source)
    return not adapter and lora_read.is_lora(source)


def _moving(source: Mapping[str, Any]) -> bool:
    return any("motion_modules" in name for name in source)


LORA = Kind(title="a LoRA", serves="--lora", find=find_spatial)
MOTION_LORA = Kind(title="a Motion-LoRA", serves="--motion-lora", find=find_motion)
