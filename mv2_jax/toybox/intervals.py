"""Means and paired differences with their 95% intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

_Z = 1.959964  # of a normal's middle 95%


class Mean(NamedTuple):
    """A mean of `count` numbers, with the 95% interval from `low` to `high`."""

    mean: float
    low: float
    high: float
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]

    def __str__(self) -> str:
        return f"{self.mean:.3g} ({self.low:.3g} to {self.high:.3g})"

    def within(self, lowest: float, highest: float) -> Mean:
        """The same of values that lie between these: Student's interval does not know it."""
        return self._replace(low=max(self.low, lowest), high=min(self.high, highest))

    @property
    def none(self) -> bool:
        """Whether the interval holds 0: for a difference, no effect was seen."""
        return not (self.low > 0 or self.high < 0)


def mean(values) -> Mean:
    """The mean of values [N] with Student's interval; numbers that are not finite do not count.

    A bootstrap's percentiles would be too narrow for a dozen numbers. One alone has an infinite
    interval.

    Raises:
        ValueError: no finite number.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        raise ValueError("a mean of nothing")
    reach = math.inf
    if values.size > 1:
        error = values.std(ddof=1) / values.size**0.5
        reach = float(stdtrit(values.size - 1, 0.975) * error)
    middle = float(values.mean())
    return Mean(middle, middle - reach, middle + reach, int(values.size))


def paired(after, before) -> Mean:
    """The mean of after - before [N]; a pair counts where both are finite.

    Raises:
        ValueError: other lengths, or no pair.
    """
    after, before = np.asarray(after, np.float64), np.asarray(before, np.float64)
    if after.shape != before.shape:
        raise ValueError(f"{after.shape} and {before.shape} are no pairs")
    return mean(after - before)


def wilson(successes: int, count: int) -> tuple[float, float]:
    """The 95% interval of a rate (E. B. Wilson, 1927), fit for rates near 0 and 1 too."""
    share = successes / count
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    reach = _Z / (1 + _Z**2 / count)
    reach *= math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def paired_rates(after, before) -> Mean:
    """The difference of two rates over the same right-or-wrong [N], with Newcombe's interval.

    His method 10 (R. G. Newcombe, 1998, Statistics in Medicine 17, p. 2635): Wilson's intervals of
    both rates, joined by how far right and wrong go together. Where no pair differs, it still says
    how much they may.

    Raises:
        ValueError: other lengths, or no pair.
    """
    after, before = np.asarray(after, bool), np.asarray(before, bool)
    if after.shape != before.shape or not after.size:
        raise ValueError(f"{after.shape} and {before.shape} are no pairs")
    count = after.size
    rates = after.mean(), before.mean()
    lows, highs = zip(*(wilson(int(hits.sum()), count) for hits in (after, before)))
    together = _correlation(after, before)
    below = [rate - low for rate, low in zip(rates, lows)]
    above = [high - rate for rate, high in zip(rates, highs)]
    difference = float(rates[0] - rates[1])

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * together * one * other + other**2))

    low, high = difference - reach(below[0], above[1]), difference + reach(above[0], below[1])
    return Mean(difference, float(low), float(high), count)


def _correlation(after: np.ndarray, before: np.ndarray) -> float:
    """Pearson's phi of right and wrong, with Newcombe's correction; 0 where one never varies."""
    both, neither = int((after & before).sum()), int((~after & ~before).sum())
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    scale = (both + won) * (lost + neither) * (both + lost) * (won + neither)
    product = both * neither - won * lost
    if product > 0:
        product = max(0.0, product - after.size / 2)
    return product / math.sqrt(scale) if scale else 0.0


def mcnemar(after, before) -> float:
    """The two-sided exact p-value of paired right-or-wrong [N] (Q. McNemar, 1947; binomial form):
    how likely so uneven a split of the pairs that differ would be, were there no effect."""
    after, before = np.asarray(after, bool), np.asarray(before, bool)
    if after.shape != before.shape:
        raise ValueError(f"{after.shape} and {before.shape} are no pairs")
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    total = won + lost
    tail = sum(math.comb(total, i) for i in range(min(won, lost) + 1)) / 2**total
    return min(1.0, 2 * tail)
