"""Packing: from the weights that phases left to one cascade folder that `mv2 generate` reads."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from mv2_jax import bundle, config, numbers
from mv2_jax.errors import InputError
from mv2_jax.train.recipe import INDEX, components_in, folder_of

# Trained over one spatial tree; the cascade folder refuses to mix them with another.
OVER_SPATIAL = ("motion_i2v", "motion_v2v", "image_attn", "control")
SHARED = ("text_encoder", "spatial")  # what T2I trains and video phases may train on


def gather(folders: Iterable[Path], licence: str) -> tuple[dict[str, bundle.Part], dict[str, Any]]:
    """The parts and notes (stages, tokenizer, defaults) of weights; later ones replace earlier.

    A folder is a phase's, or a cascade's, all of which is taken as it stands. A text encoder or a
    UNet that T2I's phases trained serves all stages, unless a video phase trained one: then each
    has its own.

    Raises:
        InputError: a folder is neither, or something that a cascade needs is in none of them.
    """
    parts: dict[str, bundle.Part] = {}
    notes: dict[str, Any] = {"stages": {}, "tokenizer": None, "defaults": {}}
    whole: list[str] = []  # names of parts that came with a cascade
    for folder in folders:
        if (folder / bundle.INDEX).is_file():
            cascade = bundle.read(folder)
            for name, part in cascade.components.items():
                origin = (part.licence, part.source, part.over)
                parts[name] = bundle.Part(cascade.load(name), part.config, *origin)
            whole += cascade.components
            notes["stages"].update(cascade.stages)
            notes["defaults"].update(cascade.defaults)
            notes["tokenizer"] = cascade.tokenizer
            continue
        if not (folder / INDEX).is_file():
            raise InputError(f"{folder} holds no weights of a training phase ({INDEX})")
        index = json.loads((folder / INDEX).read_text())
        held = components_in(folder)
        over = index["components"].get("spatial", {}).get("digest") or index["began"].get("spatial")
        stages = index.get("stages", {})
        if "t2i" not in stages and set(whole) & held.keys() & bundle.PICTURE.keys() - {"vae"}:
            _leave_t2i_its_own(parts, whole)
            if "spatial" in held:
                _retrained(parts, whole, index["began"].get("spatial"), over)
        for name, part in held.items():
            if name in bundle.PICTURE and name != "vae" and "t2i" in stages:
                name = bundle.PICTURE[name]
            own = not type(part.config).__module__.startswith("mv2_jax.")
            if own or name in bundle.COMPONENTS:
                trained = over if name in OVER_SPATIAL else None
                tree = part.params
                if name == "vfi_gan":  # its light model is the RIFE that ships once for all
                    tree = {key: own for key, own in tree.items() if key != "light"}
                source = f"mv2 train {index['phase'].rpartition('/')[0]}"
                parts[name] = bundle.Part(tree, part.config, licence, source, trained)
        for name, own in index.get("numbers", {}).items():  # of weights that know how to be sampled
            notes["defaults"][name] = {**notes["defaults"].get(name, {}), **own}
        for name, stage in stages.items():
            notes["stages"][name] = config.from_dict(stage)
        notes["tokenizer"] = index.get("tokenizer") or notes["tokenizer"]
    second, pictured = "text_encoder_2", bundle.PICTURE
    unet = parts.get(pictured["spatial"])
    if unet is not None and second in parts and getattr(unet.config, "pooled_width", None):
        parts.setdefault(pictured[second], parts[second])  # which T2I's own wants beside it
    for name in SHARED:
        if name not in parts and bundle.PICTURE[name] in parts:
            parts[name] = parts.pop(bundle.PICTURE[name])
    missing = [name for name in bundle.NEEDED if name not in parts]
    missing += [f"stage {name}" for name in numbers.DIFFUSION if name not in notes["stages"]]
    if missing or notes["tokenizer"] is None:
        raise InputError(
            f"the phases to pack lack {', '.join(missing or ['the tokenizer'])}; "
            "name all of them in pack.sources"
        )
    return parts, notes


def _leave_t2i_its_own(parts: dict[str, bundle.Part], whole: Collection[str]) -> None:
    """Keeps for T2I the networks that it shared with the video stages in a cascade, of which a
    video phase trained one on: all, since they belong together; equal files are stored once."""
    if bundle.PICTURE["spatial"] in parts:
        return
    for name, own in bundle.PICTURE.items():
        if name in whole and name != "vae":
            parts.setdefault(own, parts[name])


def _retrained(
    parts: dict[str, bundle.Part], whole: Collection[str], before: str | None, now: str | None
) -> None:
    """Of a cascade's spatial weights that a video phase trained on: the cascade's other networks go
    on over them."""
    for name in OVER_SPATIAL:
        if name in whole and parts[name].over in (None, before):
            known = parts[name].over is not None
            parts[name] = dataclasses.replace(parts[name], over=now if known else None)


def pack(root: Path, short: str, cfg: Any, chain: Iterable[str]) -> bundle.Bundle:
    """Writes the cascade folder that a recipe's `pack` settings describe, and beside its networks
    the files of the LoRAs that are merged in them.

    Args:
        root: the folder of all runs.
        short: the recipe's name.
        cfg: see `mv2_jax.train.phase.packing`.
        chain: the recipe's own phases, packed after `cfg.sources`.

    Raises:
        InputError: weights are missing, belong to different spatial weights, or `cfg.into` is a
            folder of something else.
    """
    folders = [folder_of(root, source) for source in cfg.sources]
    folders += [root / short / phase / "weights" for phase in chain]
    parts, notes = gather(folders, cfg.licence)
    into = Path(cfg.into) if cfg.into else root / short / "cascade"
    defaults = {**notes["defaults"]}
    for stage, own in cfg.defaults.items():
        defaults[stage] = {**defaults.get(stage, {}), **own}
    packed = bundle.write(
        into,
        parts,
        notes["stages"],
        notes["tokenizer"],
        name=cfg.name,
        defaults=defaults,
        replace=True,
    )
    for folder in folders:
        for file in sorted(folder.glob("*lora.*.safetensors")):
            shutil.copy(file, into)
    return packed
