"""`mv2 arena --report`: what the votes say, printed, as CSV and as charts."""

from __future__ import annotations

import csv
import importlib.util
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mv2_jax import files
from mv2_jax.errors import InputError
from mv2_jax.infer import outputs
from mv2_jax.infer.arena import build, table
from mv2_jax.infer.arena.store import CRITERIA

_FEW = 5  # raters, below which intervals are mostly about who these are
_FAR = 1e6  # votes; where more are needed, there is no difference to be found


def command(out: str, everyone: bool = False) -> table.Findings:
    """Prints the report of an arena, writes its tables and charts beside `arena.db`.

    Raises:
        InputError: no arena, no vote in it, or matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError('mv2 arena --report needs matplotlib; pip install "mv2-jax[serve]"')
    arena = build.load(out)
    try:
        names, votes = table.read(arena)
    finally:
        arena.close()
    if not votes:
        raise InputError(f"{build.database(out)}: nobody has voted yet")
    found = table.analyse(names, votes, everyone)
    print(text(found))
    folder = build.database(out).parent
    with outputs.told(folder):
        written = write(folder, names, votes, found)
    print(f"\nwrote {', '.join(path.name for path in written)} in {folder}")
    return found


def text(found: table.Findings) -> str:
    """The report as Markdown."""
    parts = [_raters(found.raters)]
    for name, title in CRITERIA.items():
        rows = [row for row in found.rows if row.criterion == name]
        if rows:
            parts += [f"## {title}", _table(rows), _opened(rows), _ranked(found, name)]
    if found.rows:
        parts += ["## Raters among themselves", _agreed(found), _sided(found.sides)]
    if found.apart:
        parts.append("Some systems are not compared with the others, be it by way of a third: "
                     "their strengths say nothing about each other.")  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def _raters(raters: Sequence[table.Rater]) -> str:
    out = [rater for rater in raters if not rater.counted]
    counted = [rater for rater in raters if rater.counted]
    said = f"{sum(r.votes for r in counted)} comparisons judged by {len(counted)} raters."
    gold = sum(r.gold for r in raters)
    if gold:
        said += f" Damaged copies found worse: {sum(r.found for r in raters)} of {gold}."
    if out:
        listed = ", ".join(f"{r.number + 1} ({r.found} of {r.gold})" for r in out)
        said += f" Not counted, for they missed half of the damaged copies or more: rater {listed}."
    if 0 < len(counted) < _FEW:
        said += (
            f" Intervals are of what other raters like these would say, of whom {len(counted)} "
            "show little."
        )
    return said


def _table(rows: Sequence[table.Row]) -> str:
    lines = ["| | against | good | same | bad | (G+S)/(B+S) | 95% interval |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {r.first} | {r.second} | {r.good} | {r.same} | {r.bad} | {r.ratio:.2f} | "
        f"{_span(r.low, r.high)} |"
        for r in rows
    ]
    return "\n".join(lines)


def _opened(rows: Sequence[table.Row]) -> str:
    """Which pairs are told apart, and what it would take to tell the others."""
    said = []
    for r in rows:
        pair = f"{r.first} and {r.second}"
        if math.isnan(r.more):
            said.append(f"{pair}: one rater on one prompt says nothing beyond them")
        elif r.more == 0:
            said.append(f"{r.first if r.ratio > 1 else r.second} is better than "
                        f"{r.second if r.ratio > 1 else r.first}")  # fmt: skip
        elif r.more > _FAR:
            said.append(f"{pair} look equal: no number of votes would tell them apart")
        else:
            said.append(f"{pair} are not told apart; about {_round(r.more):,} more votes would, "
                        "were the difference as large as it looks (80% power)")  # fmt: skip
    return "\n".join(f"- {line}." for line in said)


def _ranked(found: table.Findings, criterion: str) -> str:
    """Strengths, where there are more than two systems to rank."""
    these = sorted((s for s in found.strengths if s.criterion == criterion),
                   key=lambda s: -s.strength)  # fmt: skip
    if len(these) < 3:
        return ""
    lines = ["| system | strength (log-odds, Bradley-Terry with ties) | 95% interval |",
             "|---|---|---|"]  # fmt: skip
    lines += [f"| {s.system} | {s.strength:+.2f} | {_span(s.low, s.high)} |" for s in these]
    return "\n".join(lines)


def _agreed(found: table.Findings) -> str:
    lines = ["| Krippendorff's alpha | nominal | ordinal | comparisons of two raters or more |",
             "|---|---|---|---|"]  # fmt: skip
    for a in found.agreement:
        cells = (CRITERIA[a.criterion], _number(a.nominal), _number(a.ordinal), str(a.units))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _sided(sides: table.Sides) -> str:
    if not sides.decided:
        return ""
    leaning = "raters lean to one side" if sides.p < 0.05 else "no leaning to a side is seen"
    return (f"The left was better in {sides.left} of {sides.decided} decided votes "
            f"(p = {sides.p:.2g}): {leaning}.")  # fmt: skip


def _span(low: float, high: float) -> str:
    return "unknown" if math.isnan(low) else f"{low:.2f} to {high:.2f}"


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.2f}"


def _round(value: float) -> int:
    """To two digits: a forecast is not known better."""
    digits = max(0, int(math.log10(value)) - 1)
    return math.ceil(value / 10**digits) * 10**digits


def write(
    folder: Path, names: Sequence[str], votes: Sequence[table.Vote], found: table.Findings
) -> list[Path]:
    """Writes votes.csv, table.csv, strengths.csv, raters.csv, ratios.png and strengths.png."""
    named = [vote._replace(rater=vote.rater + 1, first=names[vote.first], second=names[vote.second])
             for vote in votes]  # fmt: skip
    raters = [rater._replace(number=rater.number + 1) for rater in found.raters]
    tables: dict[str, tuple[Any, Iterable[Any]]] = {
        "votes.csv": (table.Vote, named),
        "table.csv": (table.Row, found.rows),
        "strengths.csv": (table.Strength, found.strengths),
        "raters.csv": (table.Rater, raters),
    }
    written = []
    for name, (kind, rows) in tables.items():
        with files.whole(folder / name) as scratch, open(scratch, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(kind._fields)
            writer.writerows(rows)
        written.append(folder / name)
    return [*written, *(_chart(folder, found, name) for name in _CHARTS if found.rows)]


_CHARTS = {
    "ratios.png": "(G+S)/(B+S), with 95% intervals",
    "strengths.png": "strength in log-odds, with 95% intervals",
}


def _chart(folder: Path, found: table.Findings, name: str) -> Path:
    """A row a pair or system, a colour a criterion."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ratios = name == "ratios.png"
    bars: dict[str, dict[str, tuple[float, float, float]]] = {}
    for one in found.rows if ratios else found.strengths:
        label = f"{one.first} against {one.second}" if ratios else one.system
        value = one.ratio if ratios else one.strength
        bars.setdefault(label, {})[one.criterion] = (value, one.low, one.high)
    height = 1.2 + 0.28 * len(CRITERIA) * len(bars)
    figure, axes = pyplot.subplots(figsize=(8, height), layout="constrained")
    for number, criterion in enumerate(CRITERIA):
        points = [(row + 0.18 * number, bar[criterion])
                  for row, bar in enumerate(bars.values()) if criterion in bar]  # fmt: skip
        for at, (_, low, high) in points:
            if math.isfinite(low):
                axes.plot([low, high], [at, at], color=f"C{number}", linewidth=2)
        finite = [(value, at) for at, (value, *_) in points if math.isfinite(value)]
        axes.plot(*zip(*finite) if finite else ([], []), "o", color=f"C{number}",
                  label=CRITERIA[criterion])  # fmt: skip
    axes.axvline(1.0 if ratios else 0.0, color="grey", linewidth=1)
    axes.set_yticks([row + 0.27 for row in range(len(bars))], bars)
    axes.invert_yaxis()
    if ratios:
        axes.set_xscale("log")
    axes.set_xlabel(_CHARTS[name])
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    with files.whole(folder / name) as scratch:
        figure.savefig(scratch, format="png", dpi=120)
    pyplot.close(figure)
    return folder / name
