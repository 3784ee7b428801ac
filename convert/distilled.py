"""Networks and LoRAs that sample in few steps: LCM's, TCD's, Hyper-SD's, Lightning's and DMD2's.

Distillation changes the layers that read the time, which LoRAs of subjects and styles leave alone
(LCM's training script, whose kin the others are, lists `time_emb_proj` among its targets). Which
of them a file is no tensor says; its metadata or its name do, and are asked only then. A whole
network has those layers anyway: where neither a scheduler nor the user says how it is sampled, its
metadata and its name are all that can.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mv2_jax.configs.few_steps import FEW_STEPS, PICTURE_STEPS
from mv2_jax.convert import schedules
from mv2_jax.convert.checkpoint import Checkpoint, SourceNetwork
from mv2_jax.convert.pending import PendingNetwork
from mv2_jax.errors import InputError

if TYPE_CHECKING:
    from mv2_jax.convert.assemble import Wanted

_READS_TIME = re.compile(r"[._]time_emb_proj\.|[._]emb_layers[._]1\.")
_STEPS = re.compile(r"(?<!\d)(\d{1,2})[-_ ]?steps?(?![a-z])")
_TITLES = ("modelspec.title", "ss_output_name", "modelspec.description")
# Hyper-SD's README, of its LoRAs that keep guidance: 5 to 8.
_KEPT_GUIDANCE = 5.0
# Words of a network's name; "hyperrealism" is none, and merges are called "...XLLightning".
_WORDS = re.compile(
    r"(?P<hyper>hyper[-_ ]?sd)|(?P<dmd2>dmd2)|(?P<lightning>lightning)|(?P<turbo>turbo)"
    r"|(?<![a-z])(?:(?P<lcm>lcm)|(?P<tcd>tcd))(?![a-z])"
)
# Single steps that begin below the last timestep (the READMEs of Hyper-SD and DMD2).
_SINGLE = {"hyper": 800, "dmd2": 399}


class Distilled(NamedTuple):
    """program: a key of `few_steps.PICTURE_STEPS`, None where nothing says it. steps: those of its
    name, or None. guided: whether it keeps guidance."""

    program: str | None
    steps: int | None
    guided: bool


def told(found: SourceNetwork) -> Distilled | None:
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


def named(source: Checkpoint, override: schedules.Override) -> Distilled | None:
    """What a file with a UNet was distilled to by its titles and its name; None where it does not
    say, or where a scheduler or the user says how it is sampled.

    Raises:
        InputError: it takes a single step from a timestep that no sampler here begins with.
    """
    file = source.one("unet").path
    if source.schedule is not None or override.schedule or not file.is_file():
        return None
    said = " ".join([file.name, *(source.metadata.get(key, "") for key in _TITLES)]).lower()
    word = _WORDS.search(said)
    if word is None:
        return None
    found = _STEPS.search(said)
    program, steps = word.lastgroup, int(found[1]) if found else None
    if steps == 1 and program in _SINGLE:
        raise InputError(
            f"{source.asked}: by its name it takes a single step from timestep {_SINGLE[program]}, "
            "which is not supported; take its form of more steps"
        )
    return Distilled(program, steps, False)


def by_name(wanted: Wanted, picture: Checkpoint) -> tuple[Wanted, Distilled | None]:
    """What a user wants, with the few steps that the name of T2I's file says, and these."""
    place = "t2i_sampled" if wanted.t2i else "sampled"
    override = getattr(wanted, place)
    known = None if wanted.t2i_few_steps else named(picture, override)
    if known is None:
        return wanted, None
    if (known.program, known.steps) == ("lightning", 1) and not override.prediction:
        # SDXL-Lightning's README: of all its networks this one predicts the sample.
        override = dataclasses.replace(override, prediction="x0")
    return dataclasses.replace(wanted, t2i_few_steps=known.program, **{place: override}), known


def told_by_name(program: schedules.Program, known: Distilled) -> schedules.Program:
    """A network's program with the number of steps of its name."""
    source = f"few steps by its name: {known.program}"
    return dataclasses.replace(program, steps=known.steps or program.steps, source=source)


def note(found: SourceNetwork) -> str | None:
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


def applied(
    wanted: Wanted, built: Mapping[str, PendingNetwork], merged: Collection[SourceNetwork]
) -> Wanted:
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
    still: schedules.Program,
    program: str | None,
    network: PendingNetwork,
    merged: Collection[SourceNetwork],
) -> schedules.Program:
    """T2I's program with the steps, and the guidance, of the LoRA in its network that is of it."""
    for found in merged:
        known = told(found)
        if known and known.program and known.program == program and _holds(network, found):
            if known.steps:
                still = dataclasses.replace(still, steps=known.steps)
            if known.guided:
                still = dataclasses.replace(still, guidance=_KEPT_GUIDANCE)
    return still


def _holds(network: PendingNetwork, found: SourceNetwork) -> bool:
    """Whether a LoRA was merged into a network."""
    return str(found.path) in {path for path, _ in network.loras}
