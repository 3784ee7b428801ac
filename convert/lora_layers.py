"""Which weights a LoRA changes, and the changing of them on their way into a cascade.

Every program names a layer in its own way, but all spell out the module's path. So each layer of a
network is listed under every way there is, dots made underscores, and a LoRA's names are looked up:

    unet = Layers.of_unet(cfg, tree)
    changes = fit(lora_read.products(source, {}), {"unet": unet})["unet"]
    pairs = changed(pairs, changes)  # (leaf, array) as `engine.stream` yields them

A name that is found nowhere is an error: what a LoRA holds is merged whole or not at all.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mv2_jax.config import MotionConfig, UNetConfig
from mv2_jax.convert import ldm
from mv2_jax.convert.engine import Table, exported
from mv2_jax.convert.lora_read import Product
from mv2_jax.convert.ops import Op, as_numpy
from mv2_jax.convert.tables import clip, motion, unet
from mv2_jax.errors import InputError
from mv2_jax.params import flatten

_MODELS = {
    "unet": "unet",
    "te": "text",
    "te1": "text",
    "te2": "text_2",
    "text_encoder": "text",
    "text_encoder_2": "text_2",
}
_PREFIX = re.compile(
    r"(base_model_model_|lycoris_|diffusion_model_)?"
    r"((lora_)?(?P<model>unet|te[12]?|text_encoder(_2)?)_)?"
    r"(base_model_model_)?(?P<layer>.+)"
)
# diffusers' first LoRAs named a text encoder's layers as a UNet's.
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


class Place(NamedTuple):
    """Where one layer's weight is: its leaf, how torch's layout becomes the leaf's, its size."""

    leaf: str
    op: Op
    size: int


class Change(NamedTuple):
    """One product on its way into a leaf."""

    product: Product
    weight: float
    place: Place

    def added(self, array: np.ndarray) -> np.ndarray:
        """The leaf, fp32, with the product merged in."""
        old = self.place.op.backward(array)
        change = self.product.change()
        if change.shape[0] != old.shape[0]:
            raise InputError(f"{self.product.module}: a layer of another shape")
        change = change.reshape(old.shape)  # matrices stand for convolutions too
        if self.product.magnitude is not None:
            change = self._lengthened(old + change) - old
        (laid,) = self.place.op.forward(np.float32(self.weight) * change)
        return array + laid

    def _lengthened(self, weight: np.ndarray) -> np.ndarray:
        """A DoRA's: rows or columns of the changed weight, brought to the lengths that it says."""
        lengths = as_numpy(self.product.magnitude).astype(np.float32)
        rows = lengths.ndim == 1 or lengths.shape[0] == weight.shape[0]
        axes = tuple(n for n in range(weight.ndim) if n != (0 if rows else 1))
        norm = np.sqrt((weight * weight).sum(axes, keepdims=True))
        return weight * (lengths.reshape(norm.shape) / (norm + np.finfo(np.float32).eps))


Changes = Mapping[str, list[Change]]
"""{leaf: the changes that are added to it}"""


@dataclass(frozen=True)
class Layers:
    """Every layer of a network by every name that a LoRA may have for it."""

    places: Mapping[str, Place]

    @classmethod
    def of_unet(cls, cfg: UNetConfig, tree: Mapping[str, Any]) -> Layers:
        """The spatial UNet's: diffusers' names and LDM's."""
        modules = _modules(tree, unet.rules(cfg))
        theirs: dict[str, list[str]] = defaultdict(list)
        for old, new in ldm.unet_modules(len(cfg.channels), cfg.layers_per_block).items():
            theirs[new].append(old)
        named = dict(modules)
        for module, place in modules.items():
            stem = module
            while stem:
                for old in theirs.get(stem, ()):
                    named[old + module[len(stem) :]] = place
                stem = stem.rpartition(".")[0]
        return cls(_flat(named))

    @classmethod
    def of_text(cls, tree: Mapping[str, Any]) -> Layers:
        """A CLIP text encoder's: transformers' names, with and without `text_model.`."""
        modules = _modules(tree, clip.transformers_text("text_model."))
        short = {name.removeprefix("text_model."): place for name, place in modules.items()}
        return cls(_flat({**modules, **short}))

    @classmethod
    def of_motion(cls, cfg: MotionConfig, tree: Mapping[str, Any]) -> Layers:
        """Motion modules': the original's names and diffusers'."""
        first = _modules(tree, motion.original(cfg.attentions))
        return cls(_flat({**first, **_modules(tree, motion.diffusers(cfg.attentions))}))

    def find(self, name: str) -> Place | None:
        """The layer of a LoRA's name, its dots made underscores."""
        old = re.sub("to_(q|k|v|out)$", lambda match: _OLD_TEXT[match[0]], name)
        for spelling in (name, f"{name}_0", old):  # "to_out" stands for its first module
            if spelling in self.places:
                return self.places[spelling]
        return None


def fit(
    products: Iterable[Product],
    networks: Mapping[str, Layers],
    weight: float = 1.0,
    absent: list[str] | None = None,
) -> dict[str, dict[str, list[Change]]]:
    """{network: {leaf: changes}} of a LoRA's products.

    Args:
        products: see `lora_read.products`.
        networks: the layers that there are, by "unet", "text" and "text_2".
        weight: how much of the LoRA is merged.
        absent: gets the layers that none of the networks has; without it, one is an error.

    Raises:
        InputError: such a layer, or one of another size.
    """
    found: dict[str, dict[str, list[Change]]] = defaultdict(lambda: defaultdict(list))
    missing, unlike = [], []
    for product in products:
        match = _PREFIX.fullmatch(product.module.replace(".", "_"))
        model = _MODELS[match["model"] or "unet"]
        place = networks[model].find(match["layer"]) if model in networks else None
        if place is None:
            missing.append(product.module)
        elif product.size != place.size:
            unlike.append(product.module)
        else:
            found[model][place.leaf].append(Change(product, weight, place))
    if absent is not None:
        absent.extend(missing)
        missing = []
    for names, what in ((missing, "no such layer"), (unlike, "a layer of another size")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"{what}: {names[0]}{more}")
    return {model: dict(leaves) for model, leaves in found.items()}


def changed(
    pairs: Iterable[tuple[str, np.ndarray]], changes: Changes
) -> Iterator[tuple[str, np.ndarray]]:
    """(leaf, array) pairs with the changes added; those leaves come as fp32, whatever they were.

    Half a LoRA's change, or all of it, is lost where it is rounded to bfloat16 or float8.
    """
    for name, array in pairs:
        if name in changes:
            array = array.astype(np.float32)
            for change in changes[name]:
                array = change.added(array)
        yield name, array


def _modules(tree: Mapping[str, Any], table: Table) -> dict[str, Place]:
    """{module in the table's names: its weight} of every layer that multiplies."""
    leaves = flatten(tree)
    return {
        key.removesuffix(".weight"): Place(
            names[0], rule.operation, int(np.prod(leaves[names[0]].shape))
        )
        for key, (rule, names) in exported(leaves, table).items()
        if key.endswith(".weight") and names[0].endswith("/kernel") and len(names) == 1
    }


def _flat(modules: Mapping[str, Place]) -> dict[str, Place]:
    return {name.replace(".", "_"): place for name, place in modules.items()}
