"""LoRA files (arXiv 2106.09685) as changes of weights, whatever program wrote them.

A LoRA changes a layer's weight W to W + s * up @ down, s = alpha / rank. Known here are

- kohya's names (`lora_unet_down_blocks_0_..._to_q.lora_down.weight`, with `.alpha`), after
  diffusers' modules or after LDM's, and its LoCon for convolutions (LyCORIS; arXiv 2309.14859),
  with or without the convolution in the middle;
- PEFT's (`unet....to_q.lora_A.weight`, alpha in a config or in the file's metadata);
- diffusers' earlier ones (`....processor.to_q_lora.down.weight`, `....lora.down.weight`; no alpha),
  which AnimateDiff's Motion-LoRA and v3's domain adapter use.

LoHa, LoKr, DoRA and others are not plain products and are refused by name.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mv2_jax.convert.engine import shorten
from mv2_jax.convert.ops import as_numpy
from mv2_jax.errors import InputError

_FORMS = [
    re.compile(pattern)
    for pattern in (
        r"(?P<module>.+)\.lora_(?P<role>down|up|mid)\.weight",
        r"(?P<module>.+)\.lora_(?P<role>A|B)(\.default)?\.weight",
        r"(?P<module>.+)\.lora(_linear_layer)?\.(?P<role>down|up)\.weight",
        r"(?P<module>.+?)(\.processor)?\.(?P<leaf>to_\w+)_lora\.(?P<role>down|up)\.weight",
        r"(?P<module>.+)\.(?P<role>alpha)",
    )
]
_ROLES = {"A": "down", "B": "up"}
_OTHERS = {
    r"\.hada_": "a LoHa",
    r"\.lokr_": "a LoKr",
    r"\.dora_scale$|\.lora_magnitude_vector": "a DoRA",
    r"\.oft_|\.boft_": "an OFT",
    r"\.on_input$": "an (IA)^3",
    r"\.diff(_b)?$": "a file of whole differences",
}


@dataclass(frozen=True)
class Product:
    """One layer's change: `module` as the file names it; arrays in torch's layouts."""

    module: str
    down: Any
    up: Any
    mid: Any | None
    scale: float

    def change(self) -> np.ndarray:
        """`scale * up @ down` in fp32: [out, in], or of a convolution [out, in, height, width].

        Raises:
            InputError: shapes that do not multiply, or numbers that are not finite.
        """
        down, up = (as_numpy(x).astype(np.float32) for x in (self.down, self.up))
        plane = down.shape[2:]
        try:
            if self.mid is not None:
                mid = as_numpy(self.mid).astype(np.float32)
                plane = mid.shape[2:]
                down = np.einsum("ij...,jr->ir...", mid, down.reshape(down.shape[:2]))
            out = up.reshape(up.shape[:2]) @ down.reshape(down.shape[0], -1)
            out = out.reshape(up.shape[0], -1, *plane)
        except ValueError:
            raise InputError(
                f"{self.module}: {up.shape} and {down.shape} do not multiply to one weight"
            ) from None
        if not np.isfinite(out).all():
            raise InputError(f"{self.module}: numbers that are not finite")
        return np.float32(self.scale) * out


def is_lora(names: Iterable[str]) -> bool:
    """Whether a file holds changes of weights and not weights."""
    marks = [*_FORMS[:4], *(re.compile(f".*({pattern}).*") for pattern in _OTHERS)]
    return any(mark.fullmatch(name) for name in names for mark in marks)


def products(source: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Product]:
    """Every change in a file.

    Args:
        source: its tensors. PEFT's alphas are in `source.metadata`, or in
        settings: the `adapter_config.json` beside it, or {}.

    Raises:
        InputError: another method than a plain product, or halves without their other half.
    """
    for pattern, what in _OTHERS.items():
        if any(re.search(pattern, name) for name in source):
            raise InputError(f"this is {what}, which is no plain product of two matrices")
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    unknown = []
    for name in source:
        match = next((m for form in _FORMS if (m := form.fullmatch(name))), None)
        if match is None:
            unknown.append(name)
            continue
        groups = match.groupdict()
        module = ".".join(filter(None, (groups["module"], groups.get("leaf"))))
        found[module][_ROLES.get(groups["role"], groups["role"])] = source[name]
    halves = [name for name, parts in found.items() if not {"down", "up"} <= parts.keys()]
    if unknown or halves:
        lists = "; ".join(shorten([*unknown, *halves], limit=4))
        raise InputError(f"tensors that no LoRA has, or halves of a product alone: {lists}")
    alphas = _alphas(source, settings)
    return [
        Product(
            module,
            parts["down"],
            parts["up"],
            parts.get("mid"),
            _scale(module, parts, alphas),
        )
        for module, parts in found.items()
    ]


def _scale(module: str, parts: Mapping[str, Any], alphas: Mapping[str, Any]) -> float:
    rank = parts["down"].shape[0]
    if "alpha" in parts:
        return float(as_numpy(parts["alpha"]).reshape(-1)[0]) / rank
    settings = alphas.get(module.partition(".")[0]) or alphas.get("", {})
    patterns = (settings.get("alpha_pattern") or {}).items()
    own = next((a for name, a in patterns if re.search(rf"(^|\.){name}$", module)), None)
    alpha = settings.get("lora_alpha") if own is None else own
    if alpha is None:
        return 1.0
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _alphas(source: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """PEFT's settings by the first word of a module's name; by "" those for all.

    An adapter_config.json is for all; diffusers leaves those of the UNet and of each text encoder
    in the file's metadata, as "unet.lora_alpha" and so on.
    """
    text = getattr(source, "metadata", {}).get("lora_adapter_metadata")
    if text is None:
        return {"": dict(settings)}
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    try:
        for name, value in json.loads(text).items():
            model, _, setting = name.rpartition(".")
            found[model][setting] = value
    except (ValueError, AttributeError) as error:
        raise InputError(f"its metadata lora_adapter_metadata is damaged ({error})") from None
    return found
