"""Beginning from a cascade folder: all of its components, and the sizes of its stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mv2_jax import bundle, config
from mv2_jax.errors import InputError
from mv2_jax.train import processes

STAGES = ("t2i", "i2v", "v2v")


def parts(held: Mapping[str, Any], pictures: bool) -> dict[str, Any]:
    """A cascade folder's components by the names that a stage has for them: T2I takes its own
    networks (`bundle.PICTURE`), where the folder has some."""
    own = set(bundle.PICTURE.values())
    named = {name: part for name, part in held.items() if name not in own}
    if pictures:
        if bundle.PICTURE["spatial"] in held:  # with its second text encoder, or without any
            named.pop("text_encoder_2", None)
        named |= {name: held[t2i] for name, t2i in bundle.PICTURE.items() if t2i in held}
    return named


def complete(cfg: ConfigDict) -> None:
    """Fills in a phase's `model` from the `cascade` that it begins from: its stage, at the phase's
    own `size` and `frames` where it names them.

    Raises:
        InputError: there is no such folder; or none is named, and there is no model either.
    """
    stage = cfg.task if cfg.task in STAGES else cfg.get("stage", "")
    if "cascade" not in cfg or stage not in STAGES:
        return
    if not cfg.cascade:
        if stage not in cfg.get("model", {}):
            raise InputError(
                "cascade: name the cascade folder to begin from, with --set cascade=FOLDER"
            )
        return
    changes: dict[str, Any] = {}
    if cfg.get("size"):
        size = tuple(cfg.size)
        changes["size"] = size if len(size) == 2 else (*size, *size)
    if cfg.get("frames"):
        changes["frames"] = cfg.frames
    whole = bundle.read(cfg.cascade)
    network = whole.stages[stage].unet
    kind = "sdxl" if getattr(network, "pooled_width", None) else "sd15"
    if cfg.get("network", kind) != kind:
        raise InputError(
            f"network: this recipe is for {cfg.network}, and {stage} of {cfg.cascade} is {kind}; "
            "both have recipes of their own"
        )
    held = dataclasses.replace(whole.stages[stage], **changes)
    own = cfg.get("model", {}).get(stage)
    if own is not None and config.from_dict(own.to_dict()) != held:
        processes.say(f"model.{stage} has no effect: the {stage} stage of `cascade` holds")
    with cfg.unlocked():
        cfg.model = ConfigDict({**cfg.get("model", {}), stage: config.to_dict(held)})
