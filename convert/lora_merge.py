"""Merging LoRAs into the networks of a cascade on its way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

from mv2_jax.convert import distilled, kinds, lora_layers, lora_read
from mv2_jax.convert.checkpoint import SourceNetwork
from mv2_jax.convert.engine import shorten
from mv2_jax.convert.pending import PendingNetwork
from mv2_jax.errors import InputError
from mv2_jax.lookup import one_of
from mv2_jax.numbers import DIFFUSION

# The networks that one LoRA was trained over: what its names call them, and who they are, by the
# stages that they serve.
_VIDEO, _PICTURE = ("i2v", "v2v"), ("t2i",)
_SETS: dict[str, dict[tuple[str, ...], dict[str, str]]] = {
    "lora": {
        _VIDEO: {"unet": "spatial", "text": "text_encoder", "text_2": "text_encoder_2"},
        _PICTURE: {
            "unet": "t2i_unet",
            "text": "t2i_text_encoder",
            "text_2": "t2i_text_encoder_2",
        },
    },
    "motion_lora": {("i2v",): {"unet": "motion_i2v"}, ("v2v",): {"unet": "motion_v2v"}},
}


def apart(built: Mapping[str, PendingNetwork]) -> dict[str, PendingNetwork]:
    """The networks with networks of T2I's own, where it shares those of the video stages.

    They are stored once as long as nothing but their name tells them apart; see `bundle.Part`.
    """
    if "t2i_unet" in built:
        return dict(built)
    video, picture = _SETS["lora"][_VIDEO], _SETS["lora"][_PICTURE]
    own = {picture[model]: built[name] for model, name in video.items() if name in built}
    return {**built, **own}


def merge_into(
    built: Mapping[str, PendingNetwork],
    found: SourceNetwork,
    weight: float,
    stages: Collection[str] = (),
) -> dict[str, PendingNetwork]:
    """The networks with a LoRA merged in.

    A LoRA goes into the shared UNet and into T2I's own, wherever that is of the shape it is for.

    Args:
        stages: those whose networks it is merged into, which must have all of its layers; none
            means every one that has them.

    Raises:
        InputError: the file is no plain LoRA, no network has all of its layers, or stages that
            share their weights are to be told apart.
    """
    if stages and found.part.kind == "lora":
        built = apart(built)
    layers = {name: partial(_layers, network) for name, network in built.items()}
    merged, skipped = fitted(found, weight, stages, layers)
    # One network may stand under two names, and stays one where both are merged alike.
    new: dict[int, PendingNetwork] = {}
    for name, leaves in merged.items():
        network = built[name]
        made = network.with_changes(leaves, str(found.path), weight, _notes(found, skipped))
        new.setdefault(id(network), made)
    return {
        name: new[id(network)] if id(network) in new and (name in merged or not stages) else network
        for name, network in built.items()
    }


def fitted(
    found: SourceNetwork,
    weight: float,
    stages: Collection[str],
    layers: Mapping[str, Callable[[], lora_layers.Layers]],
) -> tuple[dict[str, lora_layers.Changes], list[str]]:
    """({component: what a LoRA adds to its leaves}, names of layers that are in none).

    Args:
        stages: as for `merge_into`.
        layers: by component, how to list its layers.

    Raises:
        InputError: as `merge_into`.
    """
    try:
        sets = _chosen(found.part.kind, stages)
        products = lora_read.products(found.part.tensors, found.settings)
        merged: dict[str, lora_layers.Changes] = {}
        misfits: list[str] = []
        skipped: list[str] = []
        for names in sets:
            names = {model: name for model, name in names.items() if name in layers}
            if "unet" not in names:
                continue
            try:
                networks = {model: layers[name]() for model, name in names.items()}
                absent: list[str] = []
                changes = lora_layers.fit(products, networks, weight, absent)
                if 2 * len(absent) > len(products):
                    more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
                    raise InputError(f"no such layer: {absent[0]}{more}")
                skipped = absent
            except InputError as error:
                misfits.append(str(error))
                continue
            merged |= {names[model]: leaves for model, leaves in changes.items()}
        if not merged or (stages and misfits):
            raise InputError(misfits[0] if misfits else "there is no network to merge it into")
    except InputError as error:
        raise InputError(f"{found.asked}: {error}") from None
    return merged, skipped


def _notes(found: SourceNetwork, skipped: Collection[str]) -> tuple[str, ...]:
    """What of a LoRA was left out."""
    notes = []
    if skipped:
        listed = ", ".join(shorten(skipped, limit=2))
        notes.append(f"{found.asked}: {len(skipped)} of its layers are not there: {listed}")
    few = distilled.note(found) if found.part.kind == "lora" else None
    if few:
        notes.append(few)
    names = lora_read.bundled(found.part.tensors)
    if names:
        notes.append(f"{found.asked}: its embeddings are left out: {', '.join(names)}")
    return tuple(notes)


def _chosen(kind: str, stages: Collection[str]) -> list[dict[str, str]]:
    """The sets of networks of these stages, or all."""
    for stage in stages:
        one_of(stage, DIFFUSION, "stage")
    sets = {of: names for of, names in _SETS[kind].items() if not stages or set(of) & set(stages)}
    split = next((of for of in sets if stages and not set(of) <= set(stages)), None)
    if split:
        raise InputError(
            f"the stages {' and '.join(split)} share their spatial weights: a LoRA goes into all "
            f"of them (@{','.join(split)}) or none"
        )
    if not sets:
        raise InputError(f"{kinds.get(kind).title} changes nothing in {', '.join(stages)}")
    return list(sets.values())


def _layers(network: PendingNetwork) -> lora_layers.Layers:
    return kinds.get(network.found.part.kind).layers(network.config, network.target)
