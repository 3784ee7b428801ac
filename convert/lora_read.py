"""LoRA files (arXiv 2106.09685) as changes of weights, whatever program wrote them.

A LoRA changes a layer's weight W to W + s * up @ down, s = alpha / rank. Known here are

- kohya's names (`lora_unet_down_blocks_0_..._to_q.lora_down.weight`, with `.alpha`), after
  diffusers' modules or after LDM's, and its LoCon for convolutions (LyCORIS; arXiv 2309.14859),
  with or without the convolution in the middle;
- PEFT's (`unet....to_q.lora_A.weight`, also `.lora_A.default_0.weight`; alpha in a config or in the
  file's metadata);
- diffusers' earlier ones (`....processor.to_q_lora.down.weight`, `....lora.down.weight`; no alpha),
  which AnimateDiff's Motion-LoRA and v3's domain adapter use.

LyCORIS' LoHa (two products, multiplied number by number) and LoKr (a Kronecker product) are changes
of weights too (arXiv 2309.14859), and DoRA (arXiv 2402.09353) sets the length of each row or column
of the changed weight anew. OFT, (IA)^3 and whole differences are refused by name. Embeddings that
are bundled with a LoRA (OneTrainer's `bundle_emb.*`) are left out, see `bundled`.
"""

from __future__ import annotations

import json
import math
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
        r"(?P<module>.+)\.lora_(?P<role>A|B)(\.default(_\d+)?)?\.weight",
        r"(?P<module>.+)\.lora(_linear_layer)?\.(?P<role>down|up)\.weight",
        r"(?P<module>.+?)(\.processor)?\.(?P<leaf>to_\w+)_lora\.(?P<role>down|up)\.weight",
        r"(?P<module>.+)\.(?P<role>hada_(w1|w2)_[ab]|hada_t[12])",
        r"(?P<module>.+)\.(?P<role>lokr_w[12](_[ab])?|lokr_t2)",
        r"(?P<module>.+)\.(?P<role>dora_scale)",
        r"(?P<module>.+)\.lora_(?P<role>magnitude_vector)(\.default(_\d+)?)?(\.weight)?",
        r"(?P<module>.+)\.(?P<role>alpha)",
    )
]
_ROLES = {"A": "down", "B": "up"}
_BUNDLED = re.compile(r"bundle_emb\.(?P<name>[^.]+)\.")
_OTHERS = {
    r"\.oft_|\.boft_": "an OFT",
    r"\.on_input$": "an (IA)^3",
    r"\.diff(_b)?$": "a file of whole differences",
}


@dataclass(frozen=True)
class Product:
    """One layer's change: `module` as the file names it; `parts` by role, in torch's layouts.

    magnitude: the lengths that a DoRA gives to rows [out, 1...] or columns [1, in...], else None.
    """

    module: str
    parts: Mapping[str, Any]
    scale: float
    magnitude: Any | None = None

    def change(self) -> np.ndarray:
        """What is added, in fp32: [out, in], or of a convolution [out, in, height, width].

        Raises:
            InputError: shapes that do not multiply, or numbers that are not finite.
        """
        parts = {role: as_numpy(x).astype(np.float32) for role, x in self.parts.items()}
        make = next(make for role, make in _METHODS.items() if role in parts)
        try:
            out = make(parts)
        except (ValueError, KeyError):
            shapes = " and ".join(str(part.shape) for part in parts.values())
            raise InputError(f"{self.module}: {shapes} do not multiply to one weight") from None
        if not np.isfinite(out).all():
            raise InputError(f"{self.module}: numbers that are not finite")
        return np.float32(self.scale) * out

    @property
    def size(self) -> int:
        """How many numbers it changes; nothing is read."""
        shapes = {role: tuple(x.shape) for role, x in self.parts.items()}
        if "up" in shapes:
            inner = shapes["down"][1:2] if "mid" in shapes else shapes["down"][1:]
            plane = shapes["mid"][2:] if "mid" in shapes else ()
            return math.prod((shapes["up"][0], *inner, *plane))
        if "hada_w1_a" in shapes:
            if "hada_t1" in shapes:
                plane = shapes["hada_t1"][2:]
                return math.prod((shapes["hada_w1_a"][1], shapes["hada_w1_b"][1], *plane))
            return shapes["hada_w1_a"][0] * math.prod(shapes["hada_w1_b"][1:])
        return math.prod(_kron_half(shapes, 1)) * math.prod(_kron_half(shapes, 2))


def _plain(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """LoRA and LoCon, with or without a convolution in the middle."""
    down, up = parts["down"], parts["up"]
    plane = down.shape[2:]
    if "mid" in parts:
        plane = parts["mid"].shape[2:]
        down = np.einsum("ij...,jr->ir...", parts["mid"], down.reshape(down.shape[:2]))
    out = up.reshape(up.shape[:2]) @ down.reshape(down.shape[0], -1)
    return out.reshape(up.shape[0], -1, *plane)


def _tucker(core: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """[out, in, ...] of LyCORIS' core [i, j, ...], left [i, out] and right [j, in]."""
    return np.einsum("ij...,ip,jr->pr...", core, left, right)


def _hadamard(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """LoHa."""
    halves = []
    for n in "12":
        left, right = parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"]
        core = parts.get(f"hada_t{n}")
        halves.append(left @ right if core is None else _tucker(core, left, right))
    return halves[0] * halves[1]


def _kronecker(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """LoKr."""
    halves = []
    for n in "12":
        whole = parts.get(f"lokr_w{n}")
        if whole is None:
            left, right = parts[f"lokr_w{n}_a"], parts[f"lokr_w{n}_b"]
            core = parts.get(f"lokr_t{n}")
            if core is None:
                whole = left @ right.reshape(right.shape[0], -1)
                whole = whole.reshape(left.shape[0], *right.shape[1:])
            else:
                whole = _tucker(core, left, right)
        halves.append(whole)
    first, second = halves
    first = first.reshape(*first.shape, *[1] * (second.ndim - first.ndim))
    return np.kron(first, second)


def _kron_half(shapes: Mapping[str, tuple[int, ...]], n: int) -> tuple[int, ...]:
    """The shape of one of a LoKr's two factors."""
    if f"lokr_w{n}" in shapes:
        return shapes[f"lokr_w{n}"]
    left, right = shapes[f"lokr_w{n}_a"], shapes[f"lokr_w{n}_b"]
    if f"lokr_t{n}" in shapes:
        return (left[1], right[1], *shapes[f"lokr_t{n}"][2:])
    return (left[0], *right[1:])


_METHODS = {
    "up": _plain,
    "hada_w1_a": _hadamard,
    "lokr_w1": _kronecker,
    "lokr_w1_a": _kronecker,
}
# Parts without which a method is none.
_NEEDED = (
    {"down", "up"},
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    {"lokr_w1", "lokr_w2"},
    {"lokr_w1_a", "lokr_w1_b", "lokr_w2"},
    {"lokr_w1", "lokr_w2_a", "lokr_w2_b"},
    {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"},
)


def bundled(names: Iterable[str]) -> list[str]:
    """The names of the embeddings that are bundled with a LoRA."""
    return sorted({match["name"] for name in names if (match := _BUNDLED.match(name))})


def is_lora(names: Iterable[str]) -> bool:
    """Whether a file holds changes of weights and not weights."""
    marks = [*_FORMS[:-1], *(re.compile(f".*({pattern}).*") for pattern in _OTHERS)]
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
        if _BUNDLED.match(name):
            continue
        match = next((m for form in _FORMS if (m := form.fullmatch(name))), None)
        if match is None:
            unknown.append(name)
            continue
        groups = match.groupdict()
        module = ".".join(filter(None, (groups["module"], groups.get("leaf"))))
        found[module][_ROLES.get(groups["role"], groups["role"])] = source[name]
    halves = [name for name, parts in found.items() if not any(n <= parts.keys() for n in _NEEDED)]
    if unknown or halves:
        lists = "; ".join(shorten([*unknown, *halves], limit=4))
        raise InputError(f"tensors that no LoRA has, or halves of a product alone: {lists}")
    alphas = _alphas(source, settings)
    made = []
    for module, parts in found.items():
        scale, magnitude = _scale(module, parts, alphas), parts.pop("dora_scale", None)
        rows = parts.pop("magnitude_vector", None)  # PEFT's, which are always of rows
        magnitude = magnitude if rows is None else rows.reshape(-1)
        parts.pop("alpha", None)
        made.append(Product(module, parts, scale, magnitude))
    return made


def _scale(module: str, parts: Mapping[str, Any], alphas: Mapping[str, Any]) -> float:
    ranked = next((r for r in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b") if r in parts), None)
    if ranked is None:  # a LoKr of two whole factors, which LyCORIS scales by nothing
        return 1.0
    rank = parts[ranked].shape[0]
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
