"""`mv2 convert FILE` alone: what a file is, and what it would serve for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from mv2_jax.convert import distilled, kinds, schedules
from mv2_jax.convert.checkpoint import Checkpoint, SourceNetwork, open_checkpoint
from mv2_jax.convert.sources import spec
from mv2_jax.errors import InputError


def lines(asked: str, variant: str | None = None, ignore: Sequence[str] = ()) -> Iterator[str]:
    """What is said of a source, line by line.

    Raises:
        InputError: as `open_checkpoint`.
    """
    source = open_checkpoint(asked, variant, ignore)
    for found in source.found:
        yield _network(found)
        yield f"    for {kinds.get(found.part.kind).serves}"
        if found.part.config is not None:
            yield f"    {_config(found.part.config)}"
        if found.part.kind == "unet":
            yield f"    {_sampling(source, found)}"


def _network(found: SourceNetwork) -> str:
    part = found.part
    specs = [spec(part.tensors, name) for name in part.tensors]
    size = sum(_count(known.shape) for known in specs)
    types = ", ".join(sorted({known.dtype.name for known in specs}))
    layout = f", in {part.layout} names" if part.layout else ""
    numbers = f"{size / 1e6:.1f} M" if size >= 1e5 else f"{size}"
    return f"{part.title}{layout}: {len(specs)} tensors, {numbers} numbers, {types}"


def _sampling(source: Checkpoint, found: SourceNetwork) -> str:
    try:
        known = distilled.named(source, schedules.Override())
        program = schedules.still(source, found.part.config, few=known and known.program)
        if known:
            program = distilled.told_by_name(program, known)
    except InputError as error:
        return f"how it is sampled: {error}"
    how = schedules.words(program.schedule)
    return f"{how}; {program.sampler} in {program.steps} steps ({program.source})"


def _config(cfg: Any) -> str:
    """What of a config is not as its class has it, as far as it is short."""
    said = []
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if not dataclasses.is_dataclass(value) and value != field.default:
            said.append(f"{field.name} {value}")
    return ", ".join(said) or "of the size that is published"


def _count(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
