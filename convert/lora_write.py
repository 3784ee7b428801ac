"""A trained LoRA in the files of other programs.

- `lora.kohya.safetensors`: kohya's names, for ComfyUI, the web UI and diffusers;
- `lora.diffusers.safetensors`: PEFT's names below those of the networks, as diffusers saves them
  (`load_lora_weights`; the alpha is the rank);
- `motion_lora.diffusers.safetensors`: the same of motion modules, for AnimateDiffPipeline;
- `motion_lora.animatediff.safetensors`: AnimateDiff's Motion-LoRA, whose scale is in its numbers.

`convert.lora_read` reads all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mv2_jax import tensorfile
from mv2_jax.config import MotionConfig, TextConfig, UNetConfig
from mv2_jax.convert.engine import ConversionError, Table, exported
from mv2_jax.convert.tables import clip, motion, unet
from mv2_jax.params import Tree, flatten
from mv2_jax.tensorfile import Spec


class Half(NamedTuple):
    """One layer's product in torch's layouts: down [rank, in, ...], up [out, rank, ...]."""

    module: str
    down: np.ndarray
    up: np.ndarray

    def scaled(self, alpha: float) -> np.ndarray:
        """`up` with the scale alpha / rank in it."""
        return np.float32(alpha / self.down.shape[0]) * self.up


class Network(NamedTuple):
    """A network that LoRAs change: what kohya's and diffusers' names of its layers begin with, and
    the table of its modules' names."""

    kohya: str
    diffusers: str
    table: Table


def write(folder: Path, parts: Mapping[str, tuple[Tree, Tree, Any]], alpha: float) -> list[Path]:
    """Writes a LoRA's files into a folder, fp32; what there is no form for is in none of them.

    Args:
        parts: by component ("spatial", "motion_i2v", "text_encoder" ...): the factors
            (`train.lora.init`), the tree that they change, its config.
        alpha: the LoRA is added with the scale alpha / rank.

    Returns:
        The files.
    """
    still: dict[str, list[Half]] = {}
    moving: list[Half] = []
    both = any(name.endswith("text_encoder_2") for name in parts)
    networks = {}
    for name, (factors, tree, config) in parts.items():
        network = _network(name, config, both)
        if network is None:
            continue
        networks[name] = network
        halves = list(_halves(factors, tree, network.table))
        if isinstance(config, MotionConfig):
            moving += halves
            original = list(_halves(factors, tree, motion.original(config.attentions)))
        else:
            still[name] = halves
    made = {}
    if still:
        named = [(networks[name], halves) for name, halves in still.items()]
        made["lora.kohya"] = _kohya(named, alpha)
        made["lora.diffusers"] = _diffusers(named, alpha)
    if moving:
        made["motion_lora.diffusers"] = _diffusers([(Network("", "unet", []), moving)], alpha)
        if all(".attention_blocks." in half.module for half in original):
            made["motion_lora.animatediff"] = _animatediff(original, alpha)
    written = []
    for name, tensors in made.items():
        path = folder / f"{name}.safetensors"
        specs = {key: Spec(array.shape, array.dtype) for key, array in tensors.items()}
        tensorfile.write(path, specs, tensors.items(), {"format": "pt"})
        written.append(path)
    return written


def _network(name: str, config: Any, both: bool) -> Network | None:
    """How the layers of a component are called; None where there is no form for its LoRA."""
    if isinstance(config, MotionConfig):
        return Network("", "unet", motion.diffusers(config.attentions))
    if isinstance(config, UNetConfig):
        return Network("lora_unet", "unet", unet.rules(config))
    if isinstance(config, TextConfig):
        table = clip.transformers_text("text_model.")
        if name.endswith("_2"):
            return Network("lora_te2", "text_encoder_2", table)
        return Network("lora_te1" if both else "lora_te", "text_encoder", table)
    return None


def _halves(factors: Tree, tree: Tree, table: Table) -> Iterator[Half]:
    """A component's products in torch's layouts."""
    shapes = {path: leaf.shape for path, leaf in flatten(tree).items()}
    flat = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(factors).items()}
    kernels = sorted({path.rpartition("/")[0] for path in flat})
    for key, (rule, (kernel, *others)) in exported(kernels, table).items():
        if others:
            raise ConversionError(f"{key} is made of several layers: a LoRA of it has no form")
        down, up = flat[f"{kernel}/down"], flat[f"{kernel}/up"]
        shape, rank = shapes[kernel], down.shape[1]
        down = rule.operation.backward(down.reshape(*shape[:-1], rank))
        window = (1,) * (len(shape) - 2)
        up = rule.operation.backward(up.reshape(*window, rank, shape[-1]))
        yield Half(key.removesuffix(".weight"), *map(np.ascontiguousarray, (down, up)))


def _kohya(named: list[tuple[Network, list[Half]]], alpha: float) -> dict[str, np.ndarray]:
    tensors = {}
    for network, halves in named:
        for half in halves:
            stem = f"{network.kohya}_{half.module.replace('.', '_')}"
            tensors[f"{stem}.lora_down.weight"] = half.down
            tensors[f"{stem}.lora_up.weight"] = half.up
            tensors[f"{stem}.alpha"] = np.float32(alpha)
    return tensors


def _diffusers(named: list[tuple[Network, list[Half]]], alpha: float) -> dict[str, np.ndarray]:
    """PEFT's names. Its alpha would be a setting beside them; without one it is the rank, so that
    the scale is in `lora_B`, for every program alike."""
    tensors = {}
    for network, halves in named:
        for half in halves:
            stem = f"{network.diffusers}.{half.module}"
            tensors[f"{stem}.lora_A.weight"] = half.down
            tensors[f"{stem}.lora_B.weight"] = half.scaled(alpha)
    return tensors


def _animatediff(halves: list[Half], alpha: float) -> dict[str, np.ndarray]:
    """No alpha has a place there: the scale is in `up`."""
    tensors = {}
    for half in halves:
        stem, _, leaf = half.module.removesuffix(".0").rpartition(".")
        name = f"{stem}.processor.{leaf}_lora"
        tensors[f"{name}.down.weight"] = half.down
        tensors[f"{name}.up.weight"] = half.scaled(alpha)
    return tensors
