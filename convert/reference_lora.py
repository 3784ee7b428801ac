"""LoRAs merged into PyTorch's networks by the rules of the programs that wrote them.

Written apart from `lora_read` and `lora_layers`, so that `mv2 verify` sees what those get wrong: a
layer is found as kohya's scripts find it, by every module's name with underscores for dots, and W
becomes W + weight * alpha / rank * up @ down, as theirs and PEFT's.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from mv2_jax.convert import ldm, sources
from mv2_jax.convert.ops import as_numpy
from mv2_jax.errors import InputError

_HALVES = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
    ".dora_scale": "dora",
    ".lora_magnitude_vector": "rows",
    ".lora_magnitude_vector.weight": "rows",
    ".lora_A.default_0.weight": "down",
    ".lora_B.default_0.weight": "up",
    **{f".hada_{part}": part for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{part}": f"k{part}" for part in ("w1", "w2", "t2")},
    **{f".lokr_{part}": f"k{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b")},
}
# diffusers' first names for a text encoder's layers.
_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def merge(
    weights: dict[str, torch.Tensor], path: str, weight: float, prefixes: Iterable[str]
) -> None:
    """Adds a LoRA's changes to a network's state dict, in place.

    Args:
        weights: a network's own state dict, in fp32.
        path: the LoRA's file.
        prefixes: what stands before this network's names in it.

    Raises:
        InputError: the file is of a kind that is not merged here.
    """
    source = sources.load(path)
    parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name in source:
        if name.startswith("bundle_emb."):
            continue
        tail = next((tail for tail in _HALVES if name.endswith(tail)), None)
        if tail is None:
            raise InputError(f"{path}: {name} belongs to no LoRA that can be verified")
        tensor = torch.from_numpy(as_numpy(source[name]).astype("float32"))
        parts[name.removesuffix(tail)][_HALVES[tail]] = tensor
    layers = _layers(weights)
    alphas = _alphas(getattr(source, "metadata", {}), path)
    for module, halves in parts.items():
        layer = _find(layers, module, tuple(prefixes))
        if layer is not None:
            change = _scale(module, halves, alphas) * _product(halves, weights[layer])
            lengths = halves.get("dora", halves["rows"].flatten() if "rows" in halves else None)
            if lengths is not None:
                change = _dora(weights[layer] + change, lengths) - weights[layer]
            weights[layer] = weights[layer] + weight * change


def _layers(weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """{module's name with underscores: the name of its weight}."""
    named = {}
    for name, value in weights.items():
        if name.endswith(".weight") and value.ndim > 1:
            module = name.removesuffix(".weight")
            for spelling in (module, module.removeprefix("text_model."), f"text_model.{module}"):
                named[spelling.replace(".", "_")] = name
    levels = {name.split(".")[1] for name in weights if name.startswith("down_blocks.")}
    first = re.compile(r"down_blocks\.0\.resnets\.\d+\.conv1\.weight")
    layers = [name for name in weights if first.fullmatch(name)]
    if "conv_in.weight" in weights:
        for old, new in ldm.unet_modules(len(levels), len(layers)).items():
            for module, name in list(named.items()):
                start = new.replace(".", "_")
                if module == start or module.startswith(f"{start}_"):
                    named.setdefault(old.replace(".", "_") + module[len(start) :], name)
    return named


def _find(layers: Mapping[str, str], module: str, prefixes: tuple[str, ...]) -> str | None:
    """The weight that a LoRA's module stands for; None for another network's."""
    for start in ("base_model.model.", "lycoris_", "diffusion_model."):
        module = module.removeprefix(start)
    module = module.replace(".processor", "").replace("unet.base_model.model.", "unet.")
    own = next((prefix for prefix in prefixes if module.startswith(prefix)), None)
    if own is None and re.match(r"(lora_)?(unet|te\d?|text_encoder(_2)?)[._]", module):
        return None
    if own is None and "unet." not in prefixes:
        return None  # without a prefix, it is the UNet's
    name = module.removeprefix(own or "").replace(".", "_").replace("temporal_transformer_", "")
    name = re.sub(r"attention_blocks_(\d)_", lambda match: f"attn{int(match[1]) + 1}_", name)
    old = re.sub("to_(q|k|v|out)$", lambda match: _TEXT[match[0]], name)
    return next((layers[n] for n in (name, f"{name}_0", old) if n in layers), None)


def _product(halves: Mapping[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    if "w1_a" in halves:
        return (_factor(halves, "1") * _factor(halves, "2")).reshape(weight.shape)
    if not halves.keys().isdisjoint(("kw1", "kw1_a")):
        first, second = _factor(halves, "1", "k"), _factor(halves, "2", "k")
        first = first.reshape(*first.shape, *[1] * (second.ndim - first.ndim))
        return torch.kron(first, second).reshape(weight.shape)
    down, up = halves["down"], halves["up"]
    if "mid" in halves:  # LyCORIS' rebuilt Tucker product
        product = torch.einsum("ijkl,ip,jr->prkl", halves["mid"], up.flatten(1).T, down.flatten(1))
    else:
        product = up.flatten(1) @ down.flatten(1)
    return product.reshape(weight.shape)


def _factor(halves: Mapping[str, torch.Tensor], n: str, kind: str = "") -> torch.Tensor:
    """One of the two factors of LyCORIS' LoHa, or (kind "k") LoKr."""
    if f"{kind}w{n}" in halves:
        return halves[f"{kind}w{n}"]
    left, right = halves[f"{kind}w{n}_a"], halves[f"{kind}w{n}_b"]
    core = halves.get(f"{kind}t{n}")
    if core is not None:
        return torch.einsum("ijkl,jr,ip->prkl", core, right, left)
    return torch.tensordot(left, right, 1)


def _dora(merged: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """W' * m / |W'|, each row's or (magnitude [1, in]) each column's length set anew."""
    if magnitude.ndim == 1 or magnitude.shape[0] == merged.shape[0]:
        norm = torch.linalg.vector_norm(merged.flatten(1), dim=1)
        shape = (-1, *[1] * (merged.ndim - 1))
    else:
        norm = torch.linalg.vector_norm(merged.transpose(0, 1).flatten(1), dim=1)
        shape = (1, -1, *[1] * (merged.ndim - 2))
    return merged * (magnitude.reshape(-1) / norm).reshape(shape)


def _scale(module: str, halves: Mapping[str, torch.Tensor], alphas: Mapping[str, Any]) -> float:
    ranked = [halves[r] for r in ("down", "w1_b", "kw1_b", "kw2_b") if r in halves]
    if not ranked:
        return 1.0  # LyCORIS scales no LoKr of two whole factors
    rank = ranked[0].shape[0]
    if "alpha" in halves:
        return float(halves["alpha"]) / rank
    network = module.partition(".")[0]
    told = {key.removeprefix(f"{network}."): value for key, value in alphas.items()}
    alpha = told.get("lora_alpha")
    for pattern, value in (told.get("alpha_pattern") or {}).items():
        if module.endswith(pattern):
            alpha = value
            break
    if alpha is None:
        return 1.0
    return alpha / (rank**0.5 if told.get("use_rslora") else rank)


def _alphas(metadata: Mapping[str, str], path: str) -> Mapping[str, Any]:
    """PEFT's settings: in the file's metadata, or in an adapter_config.json beside it."""
    if "lora_adapter_metadata" in metadata:
        return json.loads(metadata["lora_adapter_metadata"])
    beside = sources.Path(path) / "adapter_config.json"
    if not beside.is_file():
        beside = sources.Path(path).with_name("adapter_config.json")
    return json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
