"""What the compiler says of a program for absent devices: memory, exchanges, and its own time.

A TPU's compiler writes the cycles that it reckons with beside each operation; those are added up
here, loops as often as they run. Its `optimal_seconds` is of no use: it holds about -1 s for every
operation without an estimate. What has none (kernels, exchanges, copies under way) is taken from
the roofline, and the share of it is told. Compilers for other devices write no cycles.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh

from mv2_jax.errors import InputError
from mv2_jax.infer.machines import Chip
from mv2_jax.infer.planning.recorded import Program, scope

KINDS = ("all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective-permute")
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4,
          "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
_NO_ESTIMATE = 2**62  # cycles that stand for "none"


@dataclass(frozen=True)
class Compiled:
    """Bytes of one device. `seconds` are of one run, None where the compiler gives no cycles;
    `guessed` is the part of them that the roofline gave. `refused` is the compiler's message where
    the program does not fit, and then there are no numbers. Of a program that was cut (`summed`)
    `share` is the part of its roofline's time that was compiled, and `kinds` are its units'."""

    arguments: int = 0
    temporaries: int = 0
    outputs: int = 0
    code: int = 0
    seconds: float | None = None
    guessed: float = 0.0
    sent: Counter[str] = field(default_factory=Counter)
    refused: str | None = None
    share: float = 1.0
    kinds: tuple[Any, ...] = ()

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.outputs + self.code


def compile(program: Program, mesh: Mesh, chip: Chip) -> Compiled:
    """The program, compiled for the devices of `mesh`, none of which has to exist."""
    with scope(mesh):
        lowered = program.function.lower(*program.args, **program.static)
    return read(lowered, chip)


def read(lowered: Any, chip: Chip) -> Compiled:
    """A lowered program, compiled, and what the compiler says of it.

    Raises:
        InputError: the compiler fails; that of a GPU does so where its libraries are missing.
    """
    try:
        made = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return Compiled(refused=refusal(str(error)))
        said = " ".join(str(error).split())[:300]
        raise InputError(
            f"the compiler for {chip.kind} fails ({said}); --quick plans without a compiler"
        ) from error
    memory, text = made.memory_analysis(), made.as_text()
    seconds, guessed = time(text, chip)
    return Compiled(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory.generated_code_size_in_bytes,
        seconds,
        guessed,
        sent(text),
        None,
    )


def refusal(message: str) -> str:
    """The part of an out-of-memory message that says how much is wanted."""
    told = " ".join(message.partition("RESOURCE_EXHAUSTED:")[2].split())
    return re.split(r" (?:Largest program allocations|Total hbm usage)", told)[0][:300]


def sent(text: str) -> Counter[str]:
    """{kind: bytes of the results on a device} of a compiled program's exchanges."""
    total: Counter[str] = Counter()

    def found(line: str) -> Iterator[tuple[str, int]]:
        if re.search(r"replica_groups=\{\{0\},", line):  # each by itself: nothing travels
            return
        made = re.search(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(", line)
        if made:
            sizes = [_size(*shape) for shape in re.findall(r"(\w+)\[([\d,]*)\]", made[1])]
            yield made[2], max(sizes) if made[3] else sum(sizes)

    for line, times in _lines(text):
        for kind, size in found(line):
            total[kind] += size * times
    return total


def time(text: str, chip: Chip) -> tuple[float | None, float]:
    """(seconds, those of them that the compiler has no cycles for) of a compiled program."""
    if chip.clock is None or '"estimated_cycles"' not in text:
        return None, 0.0
    cycles, guessed = 0, 0.0
    for line, times in _lines(text):
        found = re.search(r'"estimated_cycles":"(\d+)"', line)
        if found and int(found[1]) < _NO_ESTIMATE:
            cycles += int(found[1]) * times
        elif 'custom_call_target="tpu_custom_call"' in line:
            guessed += times * _kernel(line, chip)
        else:
            guessed += times * _exchange(line, chip)
    return cycles / (1e9 * chip.clock) + guessed, guessed


def _kernel(line: str, chip: Chip) -> float:
    """A kernel's seconds, of the FLOPs and bytes that it was declared with."""
    told = re.search(r'"flops":"(\d+)".*?"bytes_accessed":"(\d+)"', line)
    if not told:
        return 0.0
    shape = re.search(r"\[([\d,]+)\]", line.partition("=")[2])
    width = int(shape[1].split(",")[-1]) if shape else chip.tile
    padded = int(told[1]) * max(1.0, -(-width // chip.tile) * chip.tile / width)
    return max(padded / (1e12 * chip.tflops), int(told[2]) / (1e9 * chip.bandwidth))


def _exchange(line: str, chip: Chip) -> float:
    made = re.search(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(", line)
    if not made:
        return 0.0
    sizes = [_size(*shape) for shape in re.findall(r"(\w+)\[([\d,]*)\]", made[1])]
    return max(sizes, default=0) / (1e9 * chip.link)


def _size(kind: str, shape: str) -> int:
    return _SIZES.get(kind, 0) * math.prod(int(side) for side in shape.split(",") if side)


def _lines(text: str) -> Iterator[tuple[str, int]]:
    """Operations of the entry and of the loops and branches that it runs, with how often they run;
    what is fused stands behind the one line of its fusion."""
    parts: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith(" "):
            name = head[2]
            parts[name] = []
            entry = name if head[1] else entry
        elif line.startswith("}"):
            name = ""
        elif name:
            parts[name].append(line)

    def walk(name: str, times: int) -> Iterator[tuple[str, int]]:
        for line in parts.get(name, ()):
            yield line, times
            if loop := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                yield from walk(loop[2], times * _trips(line, parts.get(loop[1], [])))
            elif " conditional(" in line:
                names = re.findall(r"(?:_computation=|[{ ,])%?([\w.\-]+)", line.split("), ", 1)[1])
                each = [[*walk(name, times)] for name in names if name in parts]
                yield from max(each, key=len, default=[])
            elif called := re.search(r" call\(.*to_apply=%?([\w.\-]+)", line):
                yield from walk(called[1], times)

    yield from walk(entry, 1)


def _trips(line: str, condition: list[str]) -> int:
    """How often a loop runs, as far as the program says."""
    told = re.search(r'known_trip_count[^}]*?"?n"?:"?(\d+)', line)
    if told:
        return int(told[1])
    constants = re.findall(r"constant\((\d+)\)", " ".join(condition))
    return max(map(int, constants), default=1)
