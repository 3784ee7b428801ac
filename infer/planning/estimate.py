"""A plan: every program's memory, work and time on a machine, before and after compiling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.interpreters import partial_eval
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding

from mv2_jax import sharding
from mv2_jax.cascade import HELD, Cascade
from mv2_jax.components import INTERPOLATOR
from mv2_jax.infer.machines import Chip, Machine
from mv2_jax.infer.planning import flops, recorded, work
from mv2_jax.infer.planning.compiled import Compiled
from mv2_jax.infer.planning.recorded import AnyMesh, Program

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """A program on a machine. Bytes are of one device; `useful` FLOPs of one device's program, all
    that has to be done; `work` what each device of the mesh does.

    parameters, inputs: what it is given; others: weights that lie there meanwhile and are not its;
    freed: those of them that would not with `--resident stage`.
    """

    program: Program
    parameters: int
    inputs: int
    outputs: int
    others: int
    freed: int
    useful: float
    work: work.Work
    compiled: Compiled | None = None

    @property
    def memory(self) -> int:
        """What a device has to hold: as the compiler says, or at least."""
        if self.compiled and not self.compiled.refused:
            return self.others + self.compiled.total
        given = self.others + self.parameters + self.inputs + self.outputs
        return given + int(self.work.temporaries)

    def fits(self, chip: Chip) -> bool:
        """Whether the compiler took it, or (uncompiled) whether it may fit at all."""
        return not (self.compiled and self.compiled.refused) and self.memory <= chip.memory

    @property
    def seconds(self) -> float:
        """Of one run: as the compiler has it, else the roofline's."""
        told = self.compiled.seconds if self.compiled else None
        return self.work.seconds if told is None else told

    @property
    def cost(self) -> float:
        """The roofline's seconds of all its runs."""
        return self.work.seconds * self.program.times


@dataclass(frozen=True)
class Plan:
    """The rows of a cascade or a stage on a machine, for a batch of videos."""

    machine: Machine
    mesh: Mapping[str, int]
    rows: tuple[Row, ...]
    batch: int

    @property
    def seconds(self) -> float:
        """A video, or a training step."""
        return sum(row.seconds * row.program.times for row in self.rows) / self.batch

    @property
    def roofline(self) -> float:
        """The same by the roofline alone."""
        return sum(row.cost for row in self.rows) / self.batch

    @property
    def useful(self) -> float:
        """FLOPs of a video that have to be done."""
        return sum(row.useful * row.program.times for row in self.rows) / self.batch

    @property
    def misfits(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.fits(self.machine.chip))

    def replaced(self, index: int, **changes: Any) -> Plan:
        """With another row of this index."""
        rows = list(self.rows)
        rows[index] = dataclasses.replace(rows[index], **changes)
        return dataclasses.replace(self, rows=tuple(rows))


def abstract(
    machine: Machine, sizes: Mapping[str, int], devices: Sequence[Any] | None = None
) -> AbstractMesh:
    """A mesh of a machine's devices for tracing: nothing but names and numbers.

    Args:
        devices: its compiler's, where what is traced is to be compiled for them.
    """
    if devices is not None:
        return sharding.make_mesh(**sizes, devices=devices).abstract_mesh
    chip = machine.chip
    device = AbstractDevice(chip.kind, None, chip.platform)
    shape = tuple(sizes.get(axis, 1) for axis in sharding.AXES)
    kinds = (AxisType.Auto,) * len(shape)
    return AbstractMesh(shape, sharding.AXES, kinds, abstract_device=device)


def rows(
    programs: Sequence[Program],
    useful: Sequence[float],
    chip: Chip,
    params: Mapping[str, Mapping[str, Any]],
    resident: str,
) -> Iterator[Row]:
    """A row of each program.

    Args:
        useful: FLOPs of each on one device.
        params: every stage's components, as shapes.
        resident: "all" of them lie on the devices, or the running "stage"'s alone.
    """
    every = {key: leaf for held in params.values() for key, leaf in _unique(held).items()}
    whole = sum(on_device(leaf, chip) for leaf in every.values())
    parts = {
        stage: sum(on_device(leaf, chip) for leaf in _unique(held).values())
        for stage, held in params.items()
    }
    for program, flop in zip(programs, useful):
        leaves = {id(leaf): leaf for leaf in _read(program)}
        own = sum(on_device(leaf, chip) for key, leaf in leaves.items() if key in every)
        given = sum(on_device(leaf, chip) for leaf in leaves.values()) - own
        out = sum(work.in_memory(leaf, chip) for leaf in jax.tree.leaves(program.traced.out_info))
        done = work.of(program.traced.jaxpr, chip)
        held = whole if resident == "all" else parts[program.stage]
        freed = held - parts[program.stage]
        yield Row(program, own, given, out, held - own, freed, flop, done)


def cascade(
    four: Callable[[AnyMesh], Cascade],
    machine: Machine,
    sizes: Mapping[str, int],
    numbers: Mapping[str, Mapping[str, Any]],
    stages: Sequence[str],
    batch: int,
    resident: str,
    wanted: Callable[[Program], bool],
    inputs: Mapping[str, Any] | None = None,
    useful: Sequence[float] | None = None,
    devices: Sequence[Any] | None = None,
) -> Plan:
    """The plan of a cascade by its traces: nothing is compiled.

    Args:
        four: the cascade on a mesh.
        wanted: which of its programs.
        useful: FLOPs of these on one device, where they are known already.
        devices: the machine's, where the programs are to be compiled.
    """

    def programs(
        sizes: Mapping[str, int], chips: Machine, devices: Sequence[Any] | None = None
    ) -> tuple[list[Program], Cascade]:
        mesh = abstract(chips, sizes, devices)
        made = four(mesh)
        found = recorded.record(made, mesh, numbers, stages, batch, inputs)
        return [program for program in found if wanted(program)], made

    found, made = programs(sizes, machine, devices)
    if useful is None:
        alone = found
        if machine.count > 1:
            alone, _ = programs({}, dataclasses.replace(machine, count=1))
        useful = [flops.count(program.traced.jaxpr) for program in alone]
    table = rows(found, useful, machine.chip, by_stage(made), resident)
    return Plan(machine, dict(sizes), tuple(table), batch)


def by_stage(four: Cascade) -> dict[str, dict[str, Any]]:
    """Every stage's components, by name."""
    between = {INTERPOLATOR: four.params[INTERPOLATOR]}
    made = {"vfi": between}
    for stage in HELD:
        names = {four.component(stage, name) for name in (*four.stage(stage).trees, "vae")}
        made[stage] = {name: four.params[name] for name in names}
    return made


def moved(program: Program, mesh: Mesh) -> Program:
    """The program for the devices of a real mesh."""

    def one(leaf: Any) -> Any:
        where = NamedSharding(mesh, leaf.sharding.spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return dataclasses.replace(program, args=jax.tree.map(one, program.args), traced=None)


def on_device(leaf: Any, chip: Chip) -> int:
    """Bytes of a laid-out array on one device."""
    share = jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
    return work.in_memory(share, chip)


def _read(program: Program) -> Iterator[Any]:
    """The arguments that its trace reads: a compiled program takes no others."""
    jaxpr = program.traced.jaxpr.jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    for leaf, read in zip(jax.tree.leaves(program.args), used, strict=True):
        if read:
            yield leaf


def _unique(params: Mapping[str, Any]) -> dict[int, Any]:
    return {id(leaf): leaf for tree in params.values() for leaf in jax.tree.leaves(tree)}
