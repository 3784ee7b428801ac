"""Bootstrap intervals over raters and prompts at once.

Votes of one rater are alike, and so are votes on one prompt's videos. Drawing raters with
replacement shows how much the first matters, drawing prompts the second; both hold the noise of
single votes, which drawing (rater, prompt) cells shows alone. So the variance is that over raters,
plus that over prompts, less that over cells (Cameron, Gelbach and Miller, JBES 29, 2011). Drawing
both at once, the "pigeonhole" bootstrap, would count the noise of single votes three times (Owen,
Ann. Appl. Stat. 1, 2007).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

DRAWS = 1000


class Votes(NamedTuple):
    """Votes on one criterion, an entry a vote.

    rater, prompt: numbers from 0. pair: which pair of systems. outcome: 0 where its first system is
    the better, 1 same, 2 the second. left: whether the first system was shown on the left.
    """

    rater: np.ndarray
    prompt: np.ndarray
    pair: np.ndarray
    outcome: np.ndarray
    left: np.ndarray


class Interval(NamedTuple):
    """value, low, high: 95% intervals [...]; error: standard errors."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error: np.ndarray


def counts(votes: Votes, pairs: int) -> np.ndarray:
    """[pairs, 3] how often each outcome."""
    return _by(np.zeros_like(votes.pair), votes, 1, pairs)[0]


def bootstrap(
    votes: Votes,
    pairs: int,
    of: Callable[[np.ndarray], np.ndarray],
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """95% intervals of what `of` makes of counts.

    Args:
        of: counts [..., pairs, 3] -> values [..., n], on a scale where errors are about normal,
            such as a logarithm.
        draws: bootstrap samples of each kind.

    Returns:
        Intervals [n]. With one rater the interval is over prompts alone, with one prompt over
        raters alone; nan with one of both.
    """
    rng = np.random.default_rng(seed)
    value = np.asarray(of(counts(votes, pairs)), np.float64)
    _, rater = np.unique(votes.rater, return_inverse=True)
    _, prompt = np.unique(votes.prompt, return_inverse=True)
    _, cell = np.unique(rater * (prompt.max(initial=0) + 1) + prompt, return_inverse=True)
    parts, freedoms = [], []
    for cluster in (rater, prompt):
        many = int(cluster.max(initial=-1)) + 1
        if many > 1:
            parts.append(_variance(cluster, many, votes, pairs, of, draws, rng))
            freedoms.append(many - 1)
    if not parts:
        empty = np.full_like(value, np.nan)
        return Interval(value, empty, empty, empty)
    variance = np.sum(parts, axis=0)
    if len(parts) == 2:
        noise = _variance(cell, int(cell.max()) + 1, votes, pairs, of, draws, rng)
        # The difference of noisy numbers; half of what single votes vary alone is the least.
        variance = np.maximum(variance - noise, noise / 2)
    # Satterthwaite's degrees of freedom, for each variance rests on as many raters or prompts.
    below = sum(part**2 / freedom for part, freedom in zip(parts, freedoms))
    freedom = np.clip(variance**2 / np.maximum(below, 1e-300), min(freedoms), None)
    error = np.sqrt(variance)
    reach = stats.t.ppf(0.975, freedom) * error
    return Interval(value, value - reach, value + reach, error)


def _variance(
    cluster: np.ndarray,
    many: int,
    votes: Votes,
    pairs: int,
    of: Callable[[np.ndarray], np.ndarray],
    draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """The variance of `of` where whole clusters are drawn with replacement."""
    tables = _by(cluster, votes, many, pairs).reshape(many, -1)
    # Clusters of equal counts are drawn as one kind: single votes are of few kinds.
    kinds, sizes = np.unique(tables, axis=0, return_counts=True)
    drawn = rng.multinomial(many, sizes / many, draws) @ kinds
    values = of(drawn.reshape(draws, pairs, 3).astype(np.float64))
    return values.var(axis=0, ddof=1) * many / (many - 1)


def _by(cluster: np.ndarray, votes: Votes, many: int, pairs: int) -> np.ndarray:
    """[many, pairs, 3] counts of every cluster."""
    at = (cluster * pairs + votes.pair) * 3 + votes.outcome
    return np.bincount(at, minlength=many * pairs * 3).reshape(many, pairs, 3)


def ratio(counts: np.ndarray) -> np.ndarray:
    """log (G+S)/(B+S) [..., pairs] of counts [..., pairs, 3], the paper's figure; with half a vote
    added to either side, so that it is finite."""
    counts = np.asarray(counts, np.float64)
    good, same, bad = np.moveaxis(counts, -1, 0)
    return np.log(good + same + 0.5) - np.log(bad + same + 0.5)
