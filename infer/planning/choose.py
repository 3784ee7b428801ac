"""`--mesh auto`: which mesh is best, by the traces and their roofline; nothing is compiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mv2_jax.infer.meshes import spelled
from mv2_jax.infer.planning.estimate import Plan

Sizes = dict[str, int]


class Tried(NamedTuple):
    """A mesh and the plan of the denoising steps over it."""

    sizes: Sizes
    plan: Plan

    @property
    def name(self) -> str:
        return spelled(self.sizes) or "one device"


def sensible(devices: int, batch: int, frames: int) -> Iterator[Sizes]:
    """Meshes worth a try: samples over `data`; of what is left frames over `context`, weights over
    `fsdp`, heads over `tensor` in ever larger shares."""
    data = math.gcd(devices, batch)
    left = devices // data
    seen = set()
    for tensor in (1, 2, 4):
        for fsdp in _divisors(left):
            context, rest = divmod(left, tensor * fsdp)
            if rest or context < 1 or (tensor > 1 and fsdp not in (1, 2)):
                continue
            if context > frames and fsdp == 1 and tensor == 1 and left > frames:
                continue
            sizes = {"data": data, "fsdp": fsdp, "context": context, "tensor": tensor}
            sizes = {axis: size for axis, size in sizes.items() if size > 1}
            key = tuple(sorted(sizes.items()))
            if key not in seen:
                seen.add(key)
                yield sizes


def best(tried: list[Tried]) -> Tried:
    """The fastest of those that fit; of those that do not, the one that needs least."""

    def rank(one: Tried) -> tuple[bool, float]:
        lacks = bool(one.plan.misfits)
        return lacks, _most(one) if lacks else one.plan.seconds

    return min(tried, key=rank)


def why(tried: list[Tried], found: Tried) -> list[str]:
    """Lines that say what was tried and why one is best."""
    chip = found.plan.machine.chip
    lines = [f"{'mesh':<28}{'steps s':>9}{'of it sent s':>14}{'GiB a device':>14}"]
    for one in sorted(tried, key=lambda one: one.plan.seconds):
        sent = _total(one, lambda work: work.exchanging)
        lines.append(
            f"{one.name:<28}{one.plan.seconds:>9.2f}{sent:>14.2f}{_most(one) / 2**30:>14.2f}"
            + ("" if not one.plan.misfits else "  does not fit")
            + ("  <- best" if one is found else "")
        )
    others = [one for one in tried if one is not found and not one.plan.misfits]
    if not others:
        return [*lines, f"best: {found.name}, the only one that fits" if len(tried) > 1 else ""]
    second = min(others, key=lambda one: one.plan.seconds)
    reasons = []
    for what, pick, unit in (
        ("exchanges", lambda work: work.exchanging, "s"),
        ("computes", lambda work: work.computing, "s"),
    ):
        mine, theirs = _total(found, pick), _total(second, pick)
        if theirs > mine:
            reasons.append(f"{what} {mine:.2f} {unit} where {second.name} takes {theirs:.2f}")
    told = "; ".join(reasons) or f"as fast as {second.name}"
    return [*lines, f"best: {found.name}: it {told} ({chip.kind}, roofline of the steps)"]


def _most(one: Tried) -> int:
    return max(row.memory for row in one.plan.rows)


def _total(one: Tried, pick: Callable[..., float]) -> float:
    rows = one.plan.rows
    return sum(pick(row.work) * row.program.times for row in rows) / one.plan.batch


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
