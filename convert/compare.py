"""A component of a cascade beside its reference: what both compute, and what they hold.

What random inputs do not reach (rows of a table of tokens, say) is compared by the numbers
themselves, and settings that no output shows (a VAE's scaling, over what norms are taken) by their
values. The reference is made of the source alone, read anew.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.errors
import numpy as np

from mv2_jax import lookup, params
from mv2_jax.bundle import Bundle
from mv2_jax.convert import kinds, pending, reference
from mv2_jax.convert.checkpoint import SourceNetwork, open_checkpoint
from mv2_jax.convert.compare_networks import Job, Numbers, census
from mv2_jax.convert.pending import PendingNetwork
from mv2_jax.convert.verify import Verdict, apart
from mv2_jax.errors import InputError


def component(
    bundle: Bundle, built: Mapping[str, PendingNetwork], name: str, scope: str | None = None
) -> Verdict:
    """Compares one component of those that `rebuild` gives.

    Raises:
        InputError: PyTorch's libraries have no such network, its source lacks tensors of it, or the
            cascade's config makes no network of its weights.
    """
    job, kind = Job(bundle, name, built[name], built, scope), built[name].found.part.kind
    try:
        run = lookup.find(kinds.get(kind).torch.compare, {}, "comparison")
        against, pairs, theirs = run(job)
    except (flax.errors.FlaxError, ValueError, TypeError, KeyError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{name}: its config in the cascade does not run: {first}") from None
    gc.collect()
    notes = [*facts(job), *tables(job, theirs)]
    verdict = apart(name, against, pairs)
    return dataclasses.replace(verdict, notes=(*verdict.notes, *notes))


def comparable(network: PendingNetwork) -> bool:
    """Whether PyTorch's libraries have such a network."""
    return kinds.get(network.found.part.kind).torch is not None


def rebuild(
    bundle: Bundle, origins: Mapping[str, Any], ignore: Sequence[str] = ()
) -> dict[str, PendingNetwork]:
    """The networks that a cascade was written from; their LoRAs are named and not merged.

    Args:
        ignore: as of `open_checkpoint`.

    Raises:
        InputError: a source that is no longer what it was.
    """
    built: dict[str, PendingNetwork] = {}
    for name in sorted(origins, key=lambda name: name != "spatial"):
        found = _found(origins[name], ignore)
        if name.startswith("motion"):
            network = pending.motion(found, built["spatial"].config)
        elif name == "image_attn":
            network = pending.image_attention(found, built["spatial"].config)
        else:
            network = pending.plain(found, built)
        given = tuple((path, weight) for path, weight in origins[name]["loras"])
        rows = tuple(
            pending.Rows(called, path, reference.vectors(path, called, network.config.width))
            for path, called in origins[name].get("embeddings", ())
        )
        built[name] = dataclasses.replace(network, loras=given, rows=rows)
    return built


def _found(origin: Mapping[str, Any], ignore: Sequence[str]) -> SourceNetwork:
    """The network of a source, as it is recognised today."""
    held = open_checkpoint(origin["path"], origin["variant"], ignore).all(origin["kind"])
    for found in held:
        if len(held) == 1 or found.part.title == origin["title"]:
            return found
    raise InputError(f"{origin['path']} no longer holds {origin['title']}")


def facts(job: Job) -> Iterator[str]:
    """Settings that no output of a component shows, where they are not as its source has them."""
    for name, value in kinds.get(job.network.found.part.kind).torch.expected(job).items():
        if getattr(job.config, name) != value:
            yield f"{name} is {getattr(job.config, name)!r}, not {value!r}"


def tables(job: Job, theirs: Numbers) -> Iterator[str]:
    """Tensors of which one side holds other numbers than the other, in whatever order or layout.

    Equal numbers have equal counts of every value. Those that a LoRA changed, and encodings of
    positions that were computed, differ by rounding and are compared in order of size.
    """
    ours = params.flatten(job.bundle.load(job.name))
    if job.mixed:
        ours = {name: array.astype(np.float32) for name, array in ours.items()}
    mine = {name: census(array) for name, array in ours.items()}
    left = set(theirs.census) - {n for n, c in theirs.census.items() if c in set(mine.values())}
    for name, own in mine.items():
        if own in theirs.census.values():
            continue
        near = next(
            (n for n in left & theirs.arrays.keys() if _close(ours[name], theirs.arrays[n])), None
        )
        if near is None:
            yield f"{name} holds other numbers than its source"
        else:
            left.discard(near)
    for name in sorted(left):
        yield f"the source's {name} is nowhere in it"


def _close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two arrays hold the same numbers but for the rounding of a sum."""
    if ours.size != theirs.size:
        return False
    a, b = (np.sort(x.reshape(-1).astype(np.float32)) for x in (ours, theirs))
    step = 2.0**-9 if ours.itemsize == 2 else 1e-6
    return bool(np.all(np.abs(a - b) <= step * np.maximum(np.abs(b), np.abs(b).max() * 1e-3)))
