"""A program's figures as the sum over its units, each kind of which is compiled once.

Time adds up exactly where units do not overlap, as XLA's cycles do not. What it leaves out is what
the compiler would do across units' borders: fuse them, or hand a result on in another layout.
Results are kept on disk, so that a plan that ran out of time goes on when it is asked again, and a
second one compiles nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from mv2_jax import files
from mv2_jax.infer import cache
from mv2_jax.infer.machines import Machine
from mv2_jax.infer.planning import compiled, estimate, units, work
from mv2_jax.infer.planning.compiled import Compiled
from mv2_jax.infer.planning.estimate import Row

Say = Callable[[str], None]


@dataclass(frozen=True)
class Kind:
    """Units of the same equations and shapes.

    path: the module of the first of them. times: how often they run in all; instances: how often
    they stand in the program. around: the most that is live beside the arguments of the program
    where one of them runs. made: None where it was not compiled.
    """

    path: str
    times: int
    instances: int
    around: int
    work: work.Work
    made: Compiled | None = None

    @property
    def seconds(self) -> float:
        """Of all of them: the compiler's, else the roofline's."""
        told = self.made.seconds if self.made else None
        return self.times * (self.work.seconds if told is None else told)

    @property
    def roofline(self) -> float:
        return self.times * self.work.seconds

    @property
    def memory(self) -> int:
        """Beside the program's arguments."""
        own = self.made.temporaries if self.made else int(self.work.temporaries)
        return self.around + own


class Store:
    """What compilers said, on disk, by what they were given."""

    def __init__(self, machine: Machine, mesh: Mesh, folder: Path | None = None) -> None:
        self._folder = folder or cache.user_cache() / "plans"
        chip = machine.chip
        compiler = "libtpu" if chip.platform == "tpu" else "jax-cuda12-plugin"
        with suppress(importlib.metadata.PackageNotFoundError):
            compiler += importlib.metadata.version(compiler)
        reader = Path(compiled.__file__).read_bytes()  # what is kept is what it reads
        self._under = repr((machine.name, chip, dict(mesh.shape), jax.__version__, compiler))
        self._under += hashlib.sha256(reader).hexdigest()

    def _file(self, key: str) -> Path:
        name = hashlib.sha256(f"{self._under} {key}".encode()).hexdigest()
        return self._folder / f"{name[:40]}.json"

    def get(self, key: str) -> Compiled | None:
        """None where it is not known, or its file is damaged."""
        with suppress(OSError, ValueError, TypeError):
            held = json.loads(self._file(key).read_text())
            return Compiled(**{**held, "sent": Counter(held["sent"])})
        return None

    def put(self, key: str, made: Compiled) -> None:
        """Keeps it, where the folder can be written."""
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            names = [f.name for f in dataclasses.fields(made) if f.name not in ("share", "kinds")]
            held = {name: getattr(made, name) for name in names}
            with files.whole(self._file(key)) as path:
                path.write_text(json.dumps(held))


def of(
    row: Row, mesh: Mesh, machine: Machine, store: Store, limit: float | None, say: Say
) -> Compiled:
    """A program compiled: by its units, or in one piece where it is one unit.

    Args:
        limit: as in `compile`; None: in one piece.
    """
    cut = units.cut(row.program.traced.jaxpr, machine.chip)
    if limit is None or len(cut) == 1:
        return compiled.compile(estimate.moved(row.program, mesh), mesh, machine.chip)
    kinds = compile(cut, mesh, machine, store, limit, say)
    return whole(kinds, row.parameters + row.inputs, row.outputs)


def compile(
    cut: Sequence[units.Unit],
    mesh: Mesh,
    machine: Machine,
    store: Store,
    limit: float,
    say: Say,
) -> tuple[Kind, ...]:
    """The units' kinds, the dearest first, compiled in this order until the time is up.

    Args:
        limit: seconds after which no further kind is compiled; 0: there is none.
    """
    by_key: dict[str, list[units.Unit]] = {}
    for unit in cut:
        by_key.setdefault(f"{unit.manual} {unit.key()}", []).append(unit)
    found = [(key, alike, _kind(alike, machine)) for key, alike in by_key.items()]
    found.sort(key=lambda one: -one[2].roofline)
    began, kinds = time.monotonic(), []
    for index, (key, alike, kind) in enumerate(found):
        made = store.get(key) if _alone(alike[0], mesh) else None
        spent = time.monotonic() - began
        if made is None and _alone(alike[0], mesh) and (not limit or spent < limit):
            made = compiled.read(alike[0].lowered(mesh), machine.chip)
            store.put(key, made)
            took = time.monotonic() - began - spent
            say(f"  {kind.path} ({index + 1}/{len(found)}) in {took:.0f} s")
        kinds.append(dataclasses.replace(kind, made=made))
    return tuple(kinds)


def _alone(unit: units.Unit, mesh: Mesh) -> bool:
    """Whether it can be compiled by itself: not where the compiler has to split it."""
    return bool(unit.jaxpr.eqns) and (unit.manual or mesh.size == 1)


def _kind(alike: Sequence[units.Unit], machine: Machine) -> Kind:
    done = alike[0].work(machine.chip)
    times, around = sum(unit.times for unit in alike), max(unit.around for unit in alike)
    return Kind(alike[0].path, times, len(alike), around, done)


def whole(kinds: Sequence[Kind], arguments: int, outputs: int) -> Compiled:
    """A program's figures of its units'.

    Args:
        arguments: bytes of what the program is given on a device; outputs: of what it returns.
    """
    refused = [kind.made.refused for kind in kinds if kind.made and kind.made.refused]
    if refused:
        return Compiled(refused=refused[0], kinds=tuple(kinds), share=share(kinds))
    sent: Counter[str] = Counter()
    for kind in kinds:
        for name, size in (kind.made or kind.work).sent.items():
            sent[name] += size * kind.times
    made = [kind for kind in kinds if kind.made]
    timed = any(kind.made.seconds is not None for kind in made)
    guessed = sum(kind.made.guessed * kind.times for kind in made)
    guessed += sum(kind.roofline for kind in kinds if not kind.made)
    return Compiled(
        arguments=arguments,
        temporaries=max((kind.memory for kind in kinds), default=0),
        outputs=outputs,
        code=sum(kind.made.code * kind.instances for kind in made),
        seconds=sum(kind.seconds for kind in kinds) if timed else None,
        guessed=guessed if timed else 0.0,
        sent=sent,
        share=share(kinds),
        kinds=tuple(kinds),
    )


def share(kinds: Sequence[Kind]) -> float:
    """The part of the roofline's time that was compiled."""
    every = sum(kind.roofline for kind in kinds)
    return sum(kind.roofline for kind in kinds if kind.made) / every if every else 1.0


def table(kinds: Sequence[Kind], most: int = 12) -> list[str]:
    """A line a kind, those first that take longest: what is to blame for a ratio."""
    lines = [f"  {'unit':<46}{'runs':>5}{'ms all':>9}{'roofline':>9}{'ratio':>7}{'temp GiB':>9}"]
    for kind in sorted(kinds, key=lambda kind: -kind.seconds)[:most]:
        known = kind.made is not None and kind.made.seconds is not None
        ratio = f"{kind.seconds / kind.roofline:.2f}" if known and kind.roofline else "-"
        memory = kind.made.temporaries if kind.made else kind.work.temporaries
        lines.append(
            f"  {kind.path[-45:]:<46}{kind.times:>5}{1e3 * kind.seconds:>9.2f}"
            f"{1e3 * kind.roofline:>9.2f}{ratio:>7}{memory / 2**30:>9.2f}"
        )
    return lines
