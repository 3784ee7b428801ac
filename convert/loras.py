"""Merging LoRAs into the networks of a cascade on its way."""

from __future__ import annotations

from collections.abc import Mapping

from mv2_jax.convert import lora, merge
from mv2_jax.convert.checkpoint import Found
from mv2_jax.convert.pieces import Piece
from mv2_jax.errors import InputError

# The sets of networks that one LoRA was trained over: what its names call them, and who they are.
_SETS = {
    "lora": (
        {"unet": "spatial", "text": "text_encoder", "text_2": "text_encoder_2"},
        {"unet": "t2i_unet", "text": "t2i_text_encoder", "text_2": "t2i_text_encoder_2"},
    ),
    "motion_lora": ({"unet": "motion_i2v"}, {"unet": "motion_v2v"}),
}


def merge_into(built: Mapping[str, Piece], found: Found, weight: float) -> dict[str, Piece]:
    """The pieces with a LoRA merged into every set of them that has all of its layers.

    A LoRA goes into the shared UNet and into T2I's own, wherever that is of the shape it is for.

    Raises:
        InputError: the file is no plain LoRA, or no set of networks has all of its layers.
    """
    misfits: list[str] = []
    merged: dict[int, merge.Changes] = {}
    try:
        products = lora.products(found.part.tensors, found.settings)
        for names in _SETS[found.part.kind]:
            names = {model: name for model, name in names.items() if name in built}
            if "unet" not in names:
                continue
            try:
                networks = {model: _layers(built[name]) for model, name in names.items()}
                changes = merge.fit(products, networks, weight)
            except InputError as error:
                misfits.append(str(error))
                continue
            merged |= {id(built[names[model]]): leaves for model, leaves in changes.items()}
        if not merged:
            raise InputError(misfits[0] if misfits else "there is no network to merge it into")
    except InputError as error:
        raise InputError(f"{found.asked}: {error}") from None
    # One piece may stand under two names, and stays one.
    new = {
        id(piece): piece.with_changes(merged[id(piece)], str(found.path), weight)
        for piece in built.values()
        if id(piece) in merged
    }
    return {name: new.get(id(piece), piece) for name, piece in built.items()}


def _layers(piece: Piece) -> merge.Layers:
    kind = piece.found.part.kind
    if kind == "unet":
        return merge.Layers.of_unet(piece.config, piece.target)
    if kind == "motion":
        return merge.Layers.of_motion(piece.config, piece.target)
    return merge.Layers.of_text(piece.target)
