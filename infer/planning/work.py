"""What one run of a traced program costs one device: FLOPs, memory, exchanges, and a roofline.

Nothing is compiled: the trace is read, with every device's share of the network written out in it
(`mv2_jax.shards`). What the compiler would fuse is guessed by one rule. Elementwise work on a value
that is used once costs nothing by itself: whoever reads the result reads its sources. What is read
several times is written to memory, and so is what products, reductions, moves and exchanges make.

The roofline takes each operation by itself, max(padded FLOPs / peak, bytes / bandwidth), and adds
them up; exchanges come on top, as if nothing overlapped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend import core

from mv2_jax.infer.machines import Chip
from mv2_jax.infer.planning import flops

SENT = {
    "all_gather": "all-gather",
    "all_gather_invariant": "all-gather",
    "psum": "all-reduce",
    "psum_invariant": "all-reduce",
    "pmax": "all-reduce",
    "all_to_all": "all-to-all",
    "ppermute": "collective-permute",
    "reduce_scatter": "reduce-scatter",
}
_PRODUCTS = ("dot_general", "conv_general_dilated", "pallas_call", "custom_call")
_REDUCE = ("reduce", "argmax", "argmin", "cumsum", "sort", "top_k")
_MOVES = ("transpose", "concatenate", "pad", "rev", "gather", "scatter", "dynamic", "stack",
          "split", "copy")  # fmt: skip
_INLINE = ("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint", "custom_jvp_call",
           "custom_vjp_call", "shard_map", "custom_vjp_call_jaxpr", "remat2")  # fmt: skip
_FREE = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "iota", "axis_index", "slice")


_LANES = 128
_NARROW = 32  # fewer channels than this are not what the compiler puts along the lanes


@dataclass
class Work:
    """Of one run of a program on one device; bytes and seconds.

    useful: FLOPs of the products; padded: with every side brought up to the chip's tiles.
    moved: to and from memory. sent: by XLA's name of the exchange, bytes of its result.
    temporaries: the most that is live at a time beside arguments and results.
    """

    useful: float = 0.0
    padded: float = 0.0
    moved: float = 0.0
    computing: float = 0.0
    exchanging: float = 0.0
    sent: Counter[str] = field(default_factory=Counter)
    temporaries: float = 0.0

    @property
    def seconds(self) -> float:
        """The roofline's time."""
        return self.computing + self.exchanging

    def add(self, other: Work, times: float = 1.0) -> None:
        """Another's work on top, but for what is live."""
        for name in ("useful", "padded", "moved", "computing", "exchanging"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for kind, size in other.sent.items():
            self.sent[kind] += int(times * size)


@dataclass
class _Op:
    """An equation, flat: values by number."""

    eqn: Any
    ins: list[int]
    outs: list[int]
    mesh: Mapping[str, int]


def of(jaxpr: Any, chip: Chip, mesh: Mapping[str, int] | None = None) -> Work:
    """The work of a jaxpr, closed or not, on one device of a kind; `mesh` where it is a device's
    part of one."""
    return _Reader(chip).run(getattr(jaxpr, "jaxpr", jaxpr), mesh or {})


class _Reader:
    """Flattens a jaxpr, tells which values lie in memory, and adds up."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip

    def run(self, jaxpr: Any, mesh: Mapping[str, int]) -> Work:
        ops: list[_Op] = []
        sizes: dict[int, int] = {}
        flat = _Flat(ops, sizes, self.chip)
        known = {var: flat.fresh(var) for var in (*jaxpr.invars, *jaxpr.constvars)}
        given = set(known.values())
        ends = flat.inline(jaxpr, known, mesh)
        return self._walk(ops, sizes, given, ends)

    def _walk(
        self, ops: list[_Op], sizes: dict[int, int], given: set[int], ends: list[int]
    ) -> Work:
        stands = _sources(ops, given, _written(ops, ends, sizes))
        last = _last(ops, stands, ends)
        placed = _placed(stands, sizes, given, ends)
        work, live, peak = Work(), 0.0, 0.0
        dying: dict[int, list[int]] = {}
        for number, index in last.items():
            if number not in given and number not in placed:
                dying.setdefault(index, []).append(number)
        for index, op in enumerate(ops):
            made = [n for n in op.outs if stands.get(n) == (n,)]
            inner = self._cost(op, stands, sizes, made, work)
            live += sum(sizes[n] for n in made if n not in placed)
            peak = max(peak, live + inner)
            live -= sum(sizes[n] for n in dying.get(index, ()) if stands.get(n) == (n,))
        work.temporaries = peak
        return work

    def _cost(
        self, op: _Op, stands: Any, sizes: Mapping[int, int], made: Sequence[int], work: Work
    ) -> float:
        """Adds an operation's cost; what is live within it alone."""
        name = op.eqn.primitive.name
        written = sum(sizes[n] for n in made)
        read = sum(sizes[n] for n in {s for i in op.ins for s in stands.get(i, ())})
        if name in SENT:
            self._send(op, work)
            return 0.0
        if name in ("scan", "while", "cond"):
            return self._loop(op, work)
        if name.startswith(("dynamic_slice", "gather", "slice")):
            read = written
        elif name.startswith("dynamic_update_slice"):
            written = sum(sizes[n] for n in op.ins[1:2])
            read = written
        if _is_product(name):
            useful, padded = product(op.eqn, self.chip.tile)
            work.useful += useful
            work.padded += padded
            compute = padded / (1e12 * self.chip.tflops)
        elif made:
            compute = 0.0
        else:
            return 0.0
        moved = read + written
        work.moved += moved
        work.computing += max(compute, moved / (1e9 * self.chip.bandwidth))
        return 0.0

    def _send(self, op: _Op, work: Work) -> None:
        params, name = op.eqn.params, op.eqn.primitive.name
        axes = params.get("axes", params.get("axis_name", ()))
        axes = (axes,) if isinstance(axes, str) else axes
        devices = math.prod(op.mesh.get(axis, 1) for axis in axes)
        if devices < 2:
            return
        size = sum(in_memory(v.aval) for v in op.eqn.outvars)
        kind = SENT[name]
        work.sent[kind] += size
        share = (devices - 1) / devices
        travels = {"all-reduce": 2 * share, "reduce-scatter": devices - 1, "collective-permute": 1}
        seconds = size * travels.get(kind, share) / (1e9 * self.chip.link)
        work.exchanging += seconds
        work.moved += 2 * size

    def _loop(self, op: _Op, work: Work) -> float:
        """A scan, as often as it runs; a while once; a branch's dearer side."""
        name, params = op.eqn.primitive.name, op.eqn.params
        bodies = params["branches"] if name == "cond" else flops.inside(tuple(params.values()))
        each = [self.run(getattr(body, "jaxpr", body), op.mesh) for body in bodies]
        if not each:
            return 0.0
        if name == "cond":
            each = [max(each, key=lambda one: (one.seconds, one.useful))]
        for one in each:
            work.add(one, params["length"] if name == "scan" else 1)
        return max(one.temporaries for one in each)


class _Flat:
    """Equations of a jaxpr and of those within it, one after the other."""

    def __init__(self, ops: list[_Op], sizes: dict[int, int], chip: Chip) -> None:
        self.ops, self.sizes, self.chip = ops, sizes, chip

    def fresh(self, var: Any) -> int:
        number = len(self.sizes)
        self.sizes[number] = in_memory(var.aval, self.chip)
        return number

    def inline(self, jaxpr: Any, known: dict[Any, int], mesh: Mapping[str, int]) -> list[int]:
        """Adds the equations; the numbers of the results."""

        def number(var: Any) -> int:
            if isinstance(var, core.Literal):
                return self.fresh(var)
            return known[var]

        for eqn in jaxpr.eqns:
            ins = [number(var) for var in eqn.invars]
            inner = _inner(eqn)
            if inner is None:
                outs = [self.fresh(var) for var in eqn.outvars]
                self.ops.append(_Op(eqn, ins, outs, mesh))
            else:
                body = getattr(inner, "jaxpr", inner)
                within = dict(zip(body.invars, ins))
                within |= {var: self.fresh(var) for var in body.constvars}
                over = eqn.params.get("mesh") if eqn.primitive.name == "shard_map" else None
                outs = self.inline(body, within, dict(over.shape) if over is not None else mesh)
            known.update(zip(eqn.outvars, outs))
        return [number(var) for var in jaxpr.outvars]


def _inner(eqn: Any) -> Any:
    """The jaxpr that stands for an equation, where it is a call."""
    if eqn.primitive.name not in _INLINE:
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in eqn.params:
            return eqn.params[key]
    return None


def _is_product(name: str) -> bool:
    return name in _PRODUCTS or name.startswith("dot_product_attention")


def _lies(name: str) -> bool:
    """Whether what an operation makes is written to memory, whoever reads it."""
    return (
        _is_product(name)
        or name in SENT
        or name in ("scan", "while", "cond")
        or name.startswith((*_REDUCE, *_MOVES))
    )


def _written(ops: list[_Op], ends: list[int], sizes: Mapping[int, int]) -> set[int]:
    """Values that are written to memory: what products and the like make, and what elementwise work
    makes for more than one of those to read."""
    readers: dict[int, set[int]] = {n: {-1} for n in ends}
    found: set[int] = set()
    for index in reversed(range(len(ops))):
        op, name = ops[index], ops[index].eqn.primitive.name
        known = set().union(*(readers.get(n, set()) for n in op.outs))
        widens = name == "convert_element_type" and sizes[op.outs[0]] >= sum(
            sizes[n] for n in op.ins
        )
        lies = _lies(name) or (len(known) > 1 and name not in _FREE and not widens)
        if lies:
            found.update(op.outs)
        for n in op.ins:
            readers.setdefault(n, set()).update({index} if lies else known)
    return found


def _sources(ops: list[_Op], given: set[int], written: set[int]) -> dict[int, tuple[int, ...]]:
    """{value: values in memory that it is made of where it is read}; itself where it lies there."""
    stands: dict[int, tuple[int, ...]] = {n: (n,) for n in given}
    for op in ops:
        sources = tuple(dict.fromkeys(s for i in op.ins for s in stands.get(i, ())))
        for n in op.outs:
            stands[n] = (n,) if n in written else sources
    return stands


def _placed(
    stands: Mapping[int, tuple[int, ...]],
    sizes: Mapping[int, int],
    given: set[int],
    ends: Sequence[int],
) -> set[int]:
    """Values in memory that lie where a result does: it itself, or one that it is made of and takes
    the place of."""
    found: set[int] = set()
    for n in ends:
        free = (s for s in stands.get(n, ()) if s not in given and s not in found)
        found.update([s for s in free if sizes[s] == sizes[n]][:1])
    return found


def _last(ops: list[_Op], stands: Mapping[int, tuple[int, ...]], ends: Sequence[int]) -> Any:
    """{value in memory: the operation that reads it last}."""
    last: dict[int, int] = {}
    for index, op in enumerate(ops):
        reads = op.ins
        # What is made of sources reads them only where it is read itself.
        if not all(stands.get(n) == (n,) for n in op.outs):
            last.update({n: max(index, last.get(n, 0)) for n in op.outs if stands[n] == (n,)})
            continue
        for i in reads:
            for s in stands.get(i, ()):
                last[s] = index
        for n in op.outs:
            last.setdefault(n, index)
    for n in ends:
        for s in stands.get(n, ()):
            last[s] = len(ops)
    return last


def product(eqn: Any, tile: int) -> tuple[float, float]:
    """(useful, padded) FLOPs of a product: rows to 8, what is summed over and made to tiles."""
    name, useful = eqn.primitive.name, flops.equation(eqn)
    if name == "dot_general":
        (contracted, _), (batched, _) = eqn.params["dimension_numbers"]
        left, right = (v.aval.shape for v in eqn.invars)
        deep = math.prod(left[i] for i in contracted)
        batch = math.prod(left[i] for i in batched)
        rows = math.prod(left) // max(1, deep * batch)
        made = math.prod(right) // max(1, deep * batch)
        sides = min(_up(rows, 8) * _up(made, tile), _up(rows, tile) * _up(made, 8))
        return useful, 2.0 * batch * _up(deep, tile) * sides
    if name == "conv_general_dilated":
        spec = eqn.params["dimension_numbers"]
        kernel = eqn.invars[1].aval.shape
        deep = math.prod(kernel[i] for i in spec.rhs_spec[1:])
        made = kernel[spec.rhs_spec[0]]
        return useful, useful * _up(deep, tile) / deep * _up(made, tile) / made
    if name == "pallas_call":
        return _kernel(eqn, useful, tile)
    return useful, useful


def _kernel(eqn: Any, useful: float, tile: int) -> tuple[float, float]:
    """An attention kernel's: q [B, N, L, D] and k alike come first."""
    shapes = [v.aval.shape for v in eqn.invars]
    pair = [shape for shape in shapes if len(shape) == 4][:2]
    if len(pair) < 2 or pair[0][-1] != pair[1][-1]:
        return useful, useful
    (b, n, lq, d), (_, _, lk, _) = pair
    one = 2.0 * b * n * lq * lk
    if not useful:  # no estimate: it goes backwards, and makes the scores anew
        useful = 2.5 * one * d
    return useful, useful * _up(d, tile) / d


def _up(size: int, multiple: int) -> int:
    return -(-max(size, 1) // multiple) * multiple


def in_memory(aval: Any, chip: Chip | None = None) -> int:
    """Bytes of an array; on a TPU, whose tiles have 128 lanes, channels fill them up."""
    if not hasattr(aval, "shape") or not hasattr(aval.dtype, "itemsize"):
        return 8 if hasattr(aval, "shape") else 0  # a key
    *rest, last = aval.shape or (1,)
    if chip is not None and chip.platform == "tpu" and last >= _NARROW:
        last = _up(last, _LANES)
    return math.prod(rest) * last * aval.dtype.itemsize
