"""What an arena's votes say: the paper's Table 1, strengths, agreement, sides, what is open."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from mv2_jax.infer.arena import agreement, intervals, strengths
from mv2_jax.infer.arena.intervals import Interval, Votes
from mv2_jax.infer.arena.store import CRITERIA, GOLD, Arena

ENOUGH = 0.5
"""Share of damaged copies that a rater must have found worse, to be counted."""
_POWER = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)  # 5% two-sided, found in 80% of studies


class Vote(NamedTuple):
    """A vote as it was given. `answer` is left, same or right; `outcome` 0 where `first` is better,
    1 same, 2 where `second` is."""

    rater: int
    kind: str
    prompt: str
    first: int
    second: int
    comparison: int
    criterion: str
    answer: str
    first_left: bool
    outcome: int
    seconds: float


class Row(NamedTuple):
    """A pair of systems on one criterion. ratio: (G+S)/(B+S) with its 95% interval. more: about how
    many more votes would tell a difference of this size from none; 0 where these do."""

    criterion: str
    first: str
    second: str
    good: int
    same: int
    bad: int
    ratio: float
    low: float
    high: float
    more: float


class Strength(NamedTuple):
    """A system on one criterion: log-odds, of mean 0, with a 95% interval."""

    criterion: str
    system: str
    strength: float
    low: float
    high: float


class Rater(NamedTuple):
    """votes: answered ballots; found: of `gold` damaged copies those found worse."""

    number: int
    votes: int
    gold: int
    found: int
    counted: bool


class Agreement(NamedTuple):
    """Krippendorff's alpha on one criterion, over `units` comparisons of two raters or more."""

    criterion: str
    nominal: float
    ordinal: float
    units: int


class Sides(NamedTuple):
    """Of `decided` votes on what is overall better, those for the left; p of a fair coin."""

    left: int
    decided: int
    p: float


class Findings(NamedTuple):
    """All that a report says."""

    rows: list[Row]
    strengths: list[Strength]
    raters: list[Rater]
    agreement: list[Agreement]
    sides: Sides
    apart: bool  # some systems are not compared, be it by way of others


def read(arena: Arena) -> tuple[list[str], list[Vote]]:
    """(names of the systems, all votes)."""
    names = [row["name"] for row in arena.rows("SELECT name FROM systems ORDER BY number")]
    found = arena.rows(
        "SELECT b.rater, c.kind, c.prompt, f.system AS first, s.system AS second, "
        "c.number AS comparison, v.criterion, v.answer, b.first_left, v.seconds FROM votes v "
        "JOIN ballots b ON b.id = v.ballot JOIN comparisons c ON c.number = b.comparison "
        "JOIN videos f ON f.id = c.first JOIN videos s ON s.id = c.second "
        "ORDER BY b.rater, b.place"
    )
    votes = []
    for row in found:
        first = "left" if row["first_left"] else "right"
        outcome = 1 if row["answer"] == "same" else 0 if row["answer"] == first else 2
        fields = {name: row[name] for name in row.keys()} | {"first_left": bool(row["first_left"])}
        votes.append(Vote(**fields, outcome=outcome))
    return names, votes


def analyse(
    names: Sequence[str],
    votes: Sequence[Vote],
    everyone: bool = False,
    draws: int = intervals.DRAWS,
) -> Findings:
    """What votes say.

    Args:
        everyone: counts raters, too, who missed half of the damaged copies or more.
    """
    all_raters = raters(votes, everyone)
    counted = {rater.number for rater in all_raters if rater.counted}
    votes = [vote for vote in votes if vote.kind != GOLD and vote.rater in counted]
    pairs = sorted({(vote.first, vote.second) for vote in votes})
    rows, found, agreements, apart = [], [], [], False
    for criterion in CRITERIA if votes else ():
        these = [vote for vote in votes if vote.criterion == criterion]
        arrays = _arrays(these, pairs)
        rows += _rows(criterion, names, arrays, pairs, draws)
        strong, linked = _strengths(criterion, names, arrays, pairs, draws)
        found += strong
        apart |= not linked
        agreements.append(_agreement(criterion, these))
    return Findings(rows, found, all_raters, agreements, _sides(votes), apart)


def ratio(good: int, same: int, bad: int) -> float:
    """The paper's (G+S)/(B+S); infinite where nobody says bad or same."""
    return (good + same) / (bad + same) if bad + same else math.inf


def raters(votes: Sequence[Vote], everyone: bool = False) -> list[Rater]:
    """Who voted, and whose votes count."""
    found = []
    for number, group in itertools.groupby(votes, lambda vote: vote.rater):
        overall = [vote for vote in group if vote.criterion == "overall"]
        gold = [vote for vote in overall if vote.kind == GOLD]
        hits = sum(vote.outcome == 0 for vote in gold)
        looked = not gold or hits > ENOUGH * len(gold)
        found.append(Rater(number, len(overall) - len(gold), len(gold), hits, looked or everyone))
    return found


def _arrays(votes: Sequence[Vote], pairs: Sequence[tuple[int, int]]) -> Votes:
    prompts = {
        prompt: number for number, prompt in enumerate(dict.fromkeys(v.prompt for v in votes))
    }
    at = {pair: number for number, pair in enumerate(pairs)}
    columns = [
        (v.rater, prompts[v.prompt], at[v.first, v.second], v.outcome, v.first_left) for v in votes
    ]
    return Votes(*(np.array(column, int) for column in zip(*columns)))


def _rows(
    criterion: str,
    names: Sequence[str],
    votes: Votes,
    pairs: Sequence[tuple[int, int]],
    draws: int,
) -> list[Row]:
    spans = intervals.bootstrap(votes, len(pairs), intervals.ratio, draws)
    rows = []
    for number, (first, second) in enumerate(pairs):
        good, same, bad = intervals.counts(votes, len(pairs))[number].tolist()
        low, high = np.exp(spans.low[number]), np.exp(spans.high[number])
        more = _more(spans, number, good + same + bad)
        rows.append(Row(criterion, names[first], names[second], good, same, bad,
                        ratio(good, same, bad), float(low), float(high), more))  # fmt: skip
    return rows


def _more(spans: Interval, at: int, votes: int) -> float:
    """How many more votes would tell the ratio from 1, were it what it seems and were raters and
    prompts to grow with them; nan where its error is not known."""
    value, low, high, error = (float(part[at]) for part in spans)
    if not math.isfinite(error):
        return math.nan
    if low > 0 or high < 0:
        return 0.0
    return max(1.0, votes * ((_POWER * error / value) ** 2 - 1)) if value else math.inf


def _strengths(
    criterion: str,
    names: Sequence[str],
    votes: Votes,
    pairs: Sequence[tuple[int, int]],
    draws: int,
) -> tuple[list[Strength], bool]:
    table, many = np.array(pairs), len(names)

    def of(counts: np.ndarray) -> np.ndarray:
        return strengths.fit(counts, table, many).strengths

    spans = intervals.bootstrap(votes, len(pairs), of, draws)
    linked = strengths.connected(intervals.counts(votes, len(pairs)), table, many)
    return [Strength(criterion, name, *(float(part[number]) for part in spans[:3]))
            for number, name in enumerate(names)], linked  # fmt: skip


def _agreement(criterion: str, votes: Sequence[Vote]) -> Agreement:
    raters = {rater: number for number, rater in enumerate(dict.fromkeys(v.rater for v in votes))}
    units = {unit: number for number, unit in enumerate(dict.fromkeys(v.comparison for v in votes))}
    ratings = np.full((len(raters), len(units)), np.nan)
    for vote in votes:
        ratings[raters[vote.rater], units[vote.comparison]] = vote.outcome
    several = int((np.isfinite(ratings).sum(axis=0) >= 2).sum())
    return Agreement(criterion, agreement.alpha(ratings, "nominal"),
                     agreement.alpha(ratings, "ordinal"), several)  # fmt: skip


def _sides(votes: Sequence[Vote]) -> Sides:
    """Whether the left is liked for being left: sides were drawn evenly, so it should win half."""
    decided = [v.answer for v in votes if v.criterion == "overall" and v.answer != "same"]
    left = decided.count("left")
    p = float(stats.binomtest(left, len(decided)).pvalue) if decided else math.nan
    return Sides(left, len(decided), p)
