"""A traced program cut into its units, so that a compiler meets each kind of them once.

A UNet's step holds a few dozen kinds of block, each many times over: residual blocks, transformers,
motion modules at every level. Compiled whole it takes the better part of an hour on two cores. The
trace of one device's program (`mv2_jax.shards`) tells of every equation which module made it; runs
of equations of one module, small enough to compile in seconds, are a unit. Units of the same
equations over the same shapes are one kind, and count as often as they occur.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mv2_jax.infer.machines import Chip
from mv2_jax.infer.planning import flops, work
from mv2_jax.infer.planning.recorded import scope

MOST = 230  # equations of a unit: a transformer or a motion module
_LOOSE = 60  # fewer equations of a module itself, between its parts, go with the next part
_ADDRESS = re.compile(r"0x[0-9a-f]+")


@dataclass(frozen=True)
class Unit:
    """A run of equations where a program holds it.

    path: the module that made them. times: how often the unit runs in one run of the program.
    jaxpr: of one device where `manual`, else of all of them. around: bytes that are live on a
    device while it runs, its inputs and outputs among them, arguments of the program not.
    """

    path: str
    times: int
    jaxpr: Any
    manual: bool
    mesh: Mapping[str, int]
    around: int

    def key(self) -> str:
        """The same for units of the same equations over the same shapes."""
        return hashlib.sha256(_spelled(self.jaxpr).encode()).hexdigest()

    def work(self, chip: Chip) -> work.Work:
        return work.of(self.jaxpr, chip, self.mesh)

    def lowered(self, mesh: Mesh) -> Any:
        """The unit as a program of its own for the devices of a mesh, ready to be compiled."""
        args = [
            jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, sharding=NamedSharding(mesh, P()))
            for v in self.jaxpr.invars
        ]
        run = core.jaxpr_as_fun(core.ClosedJaxpr(self.jaxpr, ()))
        if self.manual:
            run = jax.shard_map(run, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
        with scope(mesh):
            return jax.jit(run).lower(*args)


def cut(jaxpr: Any, chip: Chip, most: int = MOST) -> list[Unit]:
    """A program's units in their order. All of its equations are in one of them; those of loops as
    often as the loop runs."""
    return list(_Cut(chip, most).walk(getattr(jaxpr, "jaxpr", jaxpr), "", 1, 0, {}, False))


class _Cut:
    def __init__(self, chip: Chip, most: int) -> None:
        self.chip, self.most = chip, most

    def walk(
        self, jaxpr: Any, path: str, times: int, around: int, mesh: Mapping[str, int], manual: bool
    ) -> Iterator[Unit]:
        """Units of a jaxpr, within which nothing of an outer one is seen."""
        eqns = jaxpr.eqns
        names = [[word for word in str(e.source_info.name_stack).split("/") if word] for e in eqns]
        sizes = [_count(e) for e in eqns]
        live = _Live(jaxpr, self.chip)
        for low, high in self._runs(eqns, names, sizes, 0, len(eqns), 0):
            held = around + live.at(low, high)
            inner = _opened(eqns[low]) if high - low == 1 and sizes[low] > self.most else None
            if inner is None:
                own = "/".join(_common(names[low:high]))
                label = "/".join(part for part in (path, own) if part)
                piece = _piece(jaxpr, low, high)
                yield Unit(_short(label), times, piece, manual, mesh, held)
                continue
            eqn, own = eqns[low], "/".join([path, *names[low]]).strip("/")
            loop = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            shard = eqn.primitive.name == "shard_map"
            over = dict(eqn.params["mesh"].shape) if shard else mesh
            yield from self.walk(inner, own, times * loop, held, over, manual or shard)

    def _runs(
        self, eqns: Any, names: Any, sizes: Sequence[int], low: int, high: int, depth: int
    ) -> Iterator[tuple[int, int]]:
        """Runs of equations that are one unit each, of modules from a depth on."""
        if sum(sizes[low:high]) <= self.most:
            if low < high:
                yield low, high
            return
        runs: list[list[Any]] = []  # name of the next module down, first, last
        for i in range(low, high):
            name = names[i][depth] if len(names[i]) > depth else None
            if _opened(eqns[i]) is not None and sizes[i] > self.most:
                runs.append([i, i, i + 1])
            elif runs and runs[-1][0] == name:
                runs[-1][2] = i + 1
            else:
                runs.append([name, i, i + 1])
        if len(runs) == 1 and runs[0][0] is None:  # a module with nothing in it that has a name
            for start in range(low, high, self.most):
                yield start, min(high, start + self.most)
            return
        begin = low
        for index, (name, first, last) in enumerate(runs):
            if isinstance(name, int):
                yield from ((begin, first), (first, last)) if begin < first else ((first, last),)
            elif name is not None:
                within = list(self._runs(eqns, names, sizes, first, last, depth + 1))
                yield begin, within[0][1]
                yield from within[1:]
            elif last - first >= _LOOSE or index == len(runs) - 1:
                yield begin, last
            else:
                continue  # with the next
            begin = last


class _Live:
    """What is live between equations of a jaxpr: bytes on a device, its arguments left out."""

    def __init__(self, jaxpr: Any, chip: Chip) -> None:
        self.made: dict[Any, int] = {}
        self.last: dict[Any, int] = {}
        self.size: dict[Any, int] = {}
        for index, eqn in enumerate(jaxpr.eqns):
            for v in eqn.outvars:
                self.made[v], self.size[v] = index, work.in_memory(v.aval, chip)
            for v in eqn.invars:
                if not isinstance(v, core.Literal) and v in self.made:
                    self.last[v] = index
        for v in jaxpr.outvars:
            if not isinstance(v, core.Literal) and v in self.made:
                self.last[v] = len(jaxpr.eqns)

    def at(self, low: int, high: int) -> int:
        """While equations low to high run: what comes in, goes out, or lies beside them."""
        return sum(
            self.size[v]
            for v, last in self.last.items()
            if (self.made[v] < low <= last) or (low <= self.made[v] < high <= last)
        )


def _piece(jaxpr: Any, low: int, high: int) -> Any:
    """Equations low to high as a jaxpr of their own."""
    eqns = jaxpr.eqns[low:high]
    made = {v for eqn in eqns for v in eqn.outvars}
    read = dict.fromkeys(
        v for e in eqns for v in e.invars if not isinstance(v, core.Literal) and v not in made
    )
    after = {v for e in jaxpr.eqns[high:] for v in e.invars if not isinstance(v, core.Literal)}
    after |= {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    out = [v for eqn in eqns for v in eqn.outvars if v in after]
    return jaxpr.replace(constvars=[], invars=list(read), outvars=out, eqns=eqns, debug_info=_debug(
        jaxpr, len(read), len(out)))  # fmt: skip


def _debug(jaxpr: Any, ins: int, outs: int) -> Any:
    return jaxpr.debug_info._replace(arg_names=("",) * ins, result_paths=("",) * outs)


def _opened(eqn: Any) -> Any:
    """The jaxpr within an equation that can be cut by itself; of a branch the dearer side."""
    name = eqn.primitive.name
    if name == "cond":
        inner = max(eqn.params["branches"], key=flops.count)
    elif name in ("jit", "pjit", "scan", "shard_map", "closed_call"):
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    else:
        return None
    return None if getattr(inner, "consts", None) else getattr(inner, "jaxpr", inner)


def _count(eqn: Any) -> int:
    """Equations, those within one too."""
    if eqn.primitive.name == "pallas_call":
        return 1
    within = flops.inside(tuple(eqn.params.values()))
    return 1 + sum(_count(e) for inner in within for e in getattr(inner, "jaxpr", inner).eqns)


def _common(names: Sequence[Sequence[str]]) -> list[str]:
    """The path that the most telling of a run's equations share."""
    deep = [path for path in names if len(path) > 1] or list(names)
    found = list(deep[-1]) if deep else []
    for path in deep:
        same = 0
        while same < min(len(found), len(path)) and found[same] == path[same]:
            same += 1
        found = found[:same] if same else found
    return found


def _short(path: str) -> str:
    words = [word for word in path.split("/") if not word.endswith(".unit")]
    return "/".join(word for i, word in enumerate(words) if i == 0 or word != words[i - 1]) or "-"


def _spelled(jaxpr: Any) -> str:
    """A jaxpr's equations with values numbered, without what tells where it stood."""
    numbers: dict[Any, int] = {}

    def value(v: Any) -> str:
        if isinstance(v, core.Literal):
            return f"{v.val}:{v.aval}"
        return f"{numbers.setdefault(v, len(numbers))}:{v.aval}"

    def param(key: str, item: Any) -> str:
        if isinstance(item, core.ClosedJaxpr):
            shapes = [getattr(c, "shape", ()) for c in item.consts]
            return f"{key}={_spelled(item.jaxpr)}{shapes}"
        if isinstance(item, core.Jaxpr):
            return f"{key}={_spelled(item)}"
        if isinstance(item, (tuple, list)):
            return f"{key}=[{','.join(param('', one) for one in item)}]"
        return f"{key}={_ADDRESS.sub('', str(item))}"

    lines = ["in " + ",".join(value(v) for v in (*jaxpr.constvars, *jaxpr.invars))]
    for eqn in jaxpr.eqns:
        params = ";".join(param(key, eqn.params[key]) for key in sorted(eqn.params))
        ins = ",".join(value(v) for v in eqn.invars)
        lines.append(
            f"{','.join(value(v) for v in eqn.outvars)}={eqn.primitive.name}[{params}]{ins}"
        )
    return "\n".join([*lines, "out " + ",".join(value(v) for v in jaxpr.outvars)])
