"""A plan in words and as JSON. Every figure is an estimate; the notes below a table say whose."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mv2_jax.infer.machines import GIB
from mv2_jax.infer.meshes import spelled
from mv2_jax.infer.planning import summed
from mv2_jax.infer.planning.estimate import Plan, Row

WHOSE = {
    "weights": "exact: parameters as the sharding table lays them out, stored in the given type",
    "temporaries": "of a trace: what is live at a time, as if the compiler wasted nothing; it may "
    "need several times as much",
    "compiled memory": "the compiler's own memory analysis, of each program compiled by itself",
    "summed memory": "the most that a unit of the program needs: its temporaries by the compiler, "
    "and what is live around it (skips) by the trace; weights and inputs are exact",
    "useful": "matrix products, convolutions and attention of the program on one device, counted "
    "from its trace",
    "padded": "what all devices compute over that, work that several repeat and products brought "
    "up to the sides of their matrix units included",
    "moved": "bytes to and from a device's memory, counted from the trace with elementwise work "
    "taken as fused",
    "roofline": "of each operation max(padded FLOPs / peak, bytes / bandwidth), summed, and the "
    "exchanges' bytes over the links on top; no kernel reaches it",
    "compiler": "cycles that XLA's TPU compiler writes beside each operation over the clock; "
    "kernels and exchanges, for which it writes none, by the roofline",
    "share": "of the roofline's time, how much lies in units that were compiled, each kind once "
    "and counted as often as it occurs; the rest of 'compiler s' is the roofline's",
    "sent": "bytes of the results of exchanges on one device: from the trace, or read from the "
    "compiled program",
}

_USUAL = 4.0  # how many times the trace's temporaries a compiler may take


def heading(plan: Plan, what: str, told: str) -> list[str]:
    """Which machine and mesh, and what is planned."""
    chip, machine = plan.machine.chip, plan.machine
    mesh = spelled(plan.mesh) or "one device"
    half = " (a device is half a chip)" if chip.per_chip > 1 else ""
    return [
        f"{what} on {machine.name}: {machine.count} x {chip.kind}{half}, each {chip.tflops:g} "
        f"TFLOP/s bf16, {chip.bandwidth:g} GB/s, {chip.memory / GIB:.2f} GiB ({chip.source})",
        f"mesh: {mesh}; {told}",
    ]


def table(plan: Plan) -> list[str]:
    """A line a program, and the sums."""
    compiled = any(row.compiled for row in plan.rows)
    head = f"{'program':<20}{'runs':>5}{'weights':>9}{'temp':>9}{'all GiB':>9}{'TFLOP':>9}"
    head += f"{'padded':>9}{'GB':>9}{'roofline s':>12}"
    head += f"{'compiler s':>12}{'ratio':>7}{'share':>7}" if compiled else ""
    lines = [f"{head}  sent MiB"]
    lines += [_line(plan, row, compiled) for row in plan.rows]
    return lines


def _line(plan: Plan, row: Row, compiled: bool) -> str:
    done, made = row.work, row.compiled
    temporaries = done.temporaries if made is None or made.refused else made.temporaries
    times = done.padded * plan.machine.count / row.useful if row.useful else 1.0
    line = (
        f"{row.program.label:<20}{row.program.times:>5}{row.parameters / GIB:>9.2g}"
        f"{temporaries / GIB:>9.2g}{row.memory / GIB:>9.3g}{row.useful / 1e12:>9.3g}"
        f"{times:>8.2f}x{done.moved / 1e9:>9.3g}{done.seconds:>12.3g}"
    )
    if compiled:
        told = made.seconds if made else None
        line += f"{told:>12.3g}" if told is not None else f"{'-':>12}"
        ratio = told is not None and done.seconds > 0
        line += f"{told / done.seconds:>7.2f}" if ratio else f"{'-':>7}"
        line += f"{100 * made.share:>6.0f}%" if made else f"{'-':>7}"
    return f"{line}  {_sent(row)}"


def _sent(row: Row) -> str:
    sent = row.compiled.sent if row.compiled and not row.compiled.refused else row.work.sent
    return ", ".join(f"{kind} {size / 2**20:.1f}" for kind, size in sent.items() if size) or "-"


def sums(plan: Plan, price: float | None, unit: str = "video") -> list[str]:
    """Seconds, pieces an hour and money, by the compiler's figures where there are some."""
    told = [row.compiled is not None and row.compiled.seconds is not None for row in plan.rows]
    stages: dict[str, float] = {}
    for row in plan.rows:
        stages[row.program.stage] = stages.get(row.program.stage, 0.0) + (
            row.seconds * row.program.times / plan.batch
        )
    parts = ", ".join(f"{stage.upper()} {seconds:.3g}" for stage, seconds in stages.items())
    whose = "roofline, which no machine reaches"
    if any(told):
        every = all(told) and all(row.compiled.share > 0.99 for row in plan.rows if row.compiled)
        whose = "compiler's figures" if every else "compiler's figures where there are any"
    peak = plan.useful / (plan.seconds * plan.machine.count * 1e12 * plan.machine.chip.tflops)
    lines = [f"seconds a {unit}: {plan.seconds:.3g} ({parts}); {whose}"]
    if any(told):
        lines.append(f"by the roofline alone: {plan.roofline:.3g}")
    lines.append(
        f"{unit}s an hour: {3600 / plan.seconds:.3g}; useful FLOPs {plan.useful / 1e15:.3g} P a "
        f"{unit}, {100 * peak:.0f}% of the machine's peak"
    )
    if price is not None:
        lines.append(f"at {price:g} an hour: {price * plan.seconds / 3600:.4f} a {unit}")
    return lines


def units(plan: Plan) -> Iterator[str]:
    """The units of every program that was cut, those first that take longest."""
    for row in plan.rows:
        if row.compiled and row.compiled.kinds:
            yield f"units of {row.program.label}, of one run:"
            yield from summed.table(row.compiled.kinds)


def verdict(plan: Plan) -> str:
    """Whether it fits, by the program that needs most."""
    chip, row = plan.machine.chip, max(plan.rows, key=lambda row: row.memory)
    most = f"{row.memory / GIB:.2f} of {chip.memory / GIB:.2f} GiB a device, in {row.program.label}"
    if plan.misfits:
        names = ", ".join(row.program.label for row in plan.misfits)
        return f"it does not fit: {names}"
    if all(row.compiled for row in plan.rows):
        part = min((row.compiled.share for row in plan.rows if row.compiled), default=1.0)
        least = "" if part > 0.99 else f" (of some programs only {100 * part:.0f}% was compiled)"
        return f"it fits: {most}{least}"
    spare = [
        (chip.memory - each.memory + each.work.temporaries) / each.work.temporaries
        for each in plan.rows
        if each.work.temporaries
    ]
    least = min(spare, default=math.inf)
    told = f"it fits as long as temporaries are at most {least:.1f} times the trace's: {most}"
    tight = [each for each in plan.rows if each.freed and each.memory == row.memory]
    if least < _USUAL and tight:
        told += f"; --resident stage would free {tight[0].freed / GIB:.1f} GiB of weights there"
    return told


def misfits(plan: Plan, tile: int) -> Iterator[str]:
    """A line for each program that does not fit, with what would."""
    chip = plan.machine.chip
    for row in plan.misfits:
        lacks = row.memory - chip.memory
        if row.compiled and row.compiled.refused:
            said = f"the compiler refuses it: {row.compiled.refused}"
        else:
            said = f"it needs {row.memory / GIB:.2f} GiB at least, and a device has " + (
                f"{chip.memory / GIB:.2f}"
            )
        yield f"{row.program.label} does not fit: {said}"
        yield f"  what would help: {'; '.join(_help(plan, row, tile, lacks))}"


def _help(plan: Plan, row: Row, tile: int, lacks: int) -> Iterator[str]:
    if row.freed > 0:
        enough = "" if row.freed >= lacks else ", which is not enough alone"
        yield f"--resident stage (frees {row.freed / GIB:.2g} GiB of other weights{enough})"
    if row.program.name in ("encode", "decode") and not tile:
        yield "--vae-tile 512 (the autoencoder in tiles)"
    if row.parameters > plan.machine.chip.memory // 3 and plan.machine.count > 1:
        size = f"{row.parameters / GIB:.1f} GiB"
        yield f"fsdp={plan.machine.count} in --mesh (splits {size} of weights)"
    if plan.mesh.get("context", 1) < plan.machine.count:
        yield f"context={plan.machine.count} in --mesh (splits frames)"
    yield "more devices, or devices with more memory"


def notes(plan: Plan) -> list[str]:
    """Whose every figure is."""
    compiled = any(row.compiled for row in plan.rows)
    timed = any(row.compiled and row.compiled.seconds is not None for row in plan.rows)
    cut = any(row.compiled and row.compiled.kinds for row in plan.rows)
    memory = "summed memory" if cut else "compiled memory" if compiled else "temporaries"
    names = {
        "weights": "weights",
        memory: "temp, all GiB",
        "useful": "TFLOP",
        "padded": "padded",
        "moved": "GB",
        "roofline": "roofline s",
        **({"compiler": "compiler s"} if timed else {}),
        **({"share": "share"} if cut else {}),
        "sent": "sent MiB",
    }
    width = max(map(len, names.values()))
    return ["whose estimates these are:",
            *(f"  {name:<{width}}  {WHOSE[key]}" for key, name in names.items())]  # fmt: skip


def to_json(plan: Plan, about: Mapping[str, Any], price: float | None) -> dict[str, Any]:
    """All of it, bytes and seconds, with what each is worth under "whose"."""
    chip = plan.machine.chip
    return {
        **about,
        "machine": {
            "name": plan.machine.name,
            "devices": plan.machine.count,
            "kind": chip.kind,
            "tflops": chip.tflops,
            "bandwidth_gb": chip.bandwidth,
            "memory": chip.memory,
            "link_gb": chip.link,
            "source": chip.source,
        },
        "mesh": dict(plan.mesh),
        "batch": plan.batch,
        "programs": [_json_row(plan, row) for row in plan.rows],
        "fits": not plan.misfits,
        "seconds": plan.seconds,
        "roofline_seconds": plan.roofline,
        "an_hour": 3600 / plan.seconds,
        "useful_flops": plan.useful,
        **({"price": price * plan.seconds / 3600} if price is not None else {}),
        "whose": WHOSE,
    }


def _json_kind(kind: summed.Kind) -> dict[str, Any]:
    made = kind.made
    return {
        "path": kind.path,
        "runs": kind.times,
        "seconds": kind.seconds,
        "roofline_seconds": kind.roofline,
        "useful_flops": kind.work.useful,
        "padded_flops": kind.work.padded,
        "compiled": made is not None,
        "temporaries": made.temporaries if made else int(kind.work.temporaries),
        "live_around": kind.around,
        "refused": made.refused if made else None,
    }


def _json_row(plan: Plan, row: Row) -> dict[str, Any]:
    made, done = row.compiled, row.work
    return {
        "stage": row.program.stage,
        "program": row.program.name,
        "runs": row.program.times,
        "memory": {
            "parameters": row.parameters,
            "other_weights": row.others,
            "freed_by_resident_stage": row.freed,
            "inputs": row.inputs,
            "outputs": row.outputs,
            "temporaries_at_least": int(done.temporaries),
            "all": row.memory,
        },
        "fits": row.fits(plan.machine.chip),
        "useful_flops": row.useful,
        "device": {
            "flops": done.useful,
            "padded_flops": done.padded,
            "moved": done.moved,
            "sent": dict(done.sent),
            "computing_seconds": done.computing,
            "exchanging_seconds": done.exchanging,
        },
        "roofline_seconds": done.seconds,
        "compiled": made and {
            "arguments": made.arguments,
            "temporaries": made.temporaries,
            "outputs": made.outputs,
            "code": made.code,
            "seconds": made.seconds,
            "seconds_by_roofline": made.guessed,
            "sent": dict(made.sent),
            "refused": made.refused,
            "share": made.share,
            "units": [_json_kind(kind) for kind in made.kinds],
        },
    }  # fmt: skip
