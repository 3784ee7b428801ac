"""LoRAs that make a network sample in few steps: LCM's, TCD's, Hyper-SD's and Lightning's.

Distillation changes the layers that read the time, which LoRAs of subjects and styles leave alone
(LCM's training script, whose kin the others are, lists `time_emb_proj` among its targets). Which
of them a file is no tensor says; its metadata or its name do, and are asked only then.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mv2_jax.configs.few_steps import FEW_STEPS, PICTURE_STEPS
from mv2_jax.convert import schedules
from mv2_jax.convert.checkpoint import Found
from mv2_jax.convert.pieces import Piece

if TYPE_CHECKING:
    from mv2_jax.convert.assemble import Wanted

_READS_TIME = re.compile(r"[._]time_emb_proj\.|[._]emb_layers[._]1\.")
_STEPS = re.compile(r"(?<!\d)(\d{1,2})[-_ ]?steps?(?![a-z])")
_TITLES = ("modelspec.title", "ss_output_name", "modelspec.description")
# Hyper-SD's README, of its LoRAs that keep guidance: 5 to 8.
_KEPT_GUIDANCE = 5.0


class Distilled(NamedTuple):
    """program: a key of `few_steps.PICTURE_STEPS`, None where nothing says it. steps: those of its
    name, or None. guided: whether it keeps guidance."""

    program: str | None
    steps: int | None
    guided: bool


def told(found: Found) -> Distilled | None:
    """What a LoRA was distilled to; None of one that leaves what reads the time alone."""
    tensors = found.part.tensors
    if not any(_READS_TIME.search(name) for name in tensors):
        return None
    metadata: Mapping[str, str] = getattr(tensors, "metadata", {})
    named = found.path.name
    if named.startswith("pytorch_lora_weights"):  # the library's name; its folder or id says more
        named = "/".join(Path(found.asked).parts[-3:])
    said = " ".join([named, *(metadata.get(key, "") for key in _TITLES)]).lower()
    program = next((name for name in PICTURE_STEPS if name in said), None)
    steps = _STEPS.search(said)
    return Distilled(program, int(steps[1]) if steps else None, "cfg" in said)


def note(found: Found) -> str | None:
    """A line on a LoRA that was distilled."""
    known = told(found)
    if known is None:
        return None
    if known.program is None:
        names = ", ".join(PICTURE_STEPS)
        return (
            f"{found.asked} changes the layers that read the time, as few-step LoRAs do, and its "
            f"name says none of them: --t2i-few-steps ({names}) samples t2i so"
        )
    return f"{found.asked} is a few-step LoRA by its layers, and by its name one of {known.program}"


def applied(wanted: Wanted, built: Mapping[str, Piece], merged: Collection[Found]) -> Wanted:
    """What a user wants, with the few steps of the LoRAs that were merged where he says none."""
    picture = "t2i_unet" if "t2i_unet" in built else "spatial"
    for found in merged:
        known = told(found)
        if known is None or known.program is None:
            continue
        if _holds(built[picture], found) and not wanted.t2i_few_steps:
            wanted = dataclasses.replace(wanted, t2i_few_steps=known.program)
        video = known.program in FEW_STEPS and "motion_i2v" in built
        if video and _holds(built["spatial"], found) and not wanted.few_steps:
            wanted = dataclasses.replace(wanted, few_steps=known.program)
    return wanted


def counted(
    still: schedules.Program, program: str | None, piece: Piece, merged: Collection[Found]
) -> schedules.Program:
    """T2I's program with the steps, and the guidance, of the LoRA in its network that is of it."""
    for found in merged:
        known = told(found)
        if known and known.program and known.program == program and _holds(piece, found):
            if known.steps:
                still = dataclasses.replace(still, steps=known.steps)
            if known.guided:
                still = dataclasses.replace(still, guidance=_KEPT_GUIDANCE)
    return still


def _holds(piece: Piece, found: Found) -> bool:
    """Whether a LoRA was merged into a network."""
    return str(found.path) in {path for path, _ in piece.loras}
