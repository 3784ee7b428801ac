"""Means and paired differences with their 95% intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

_DRAWS = 4000


class Mean(NamedTuple):
    """A mean of `count` numbers, with the 95% interval from `low` to `high`."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3g} ({self.low:.3g} to {self.high:.3g})"

    @property
    def none(self) -> bool:
        """Whether the interval holds 0: for a difference, no effect was seen."""
        return not (self.low > 0 or self.high < 0)


def mean(values, seed: int = 0) -> Mean:
    """The mean of values [N] with its bootstrap interval (percentiles of resampled means, Efron
    and Tibshirani, 1993); numbers that are not finite do not count.

    Raises:
        ValueError: no finite number.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        raise ValueError("a mean of nothing")
    rng = np.random.default_rng(seed)
    means = values[rng.integers(values.size, size=(_DRAWS, values.size))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Mean(float(values.mean()), float(low), float(high), int(values.size))


def paired(after, before, seed: int = 0) -> Mean:
    """The mean of after - before [N], pairs resampled whole; a pair counts where both are finite.

    Raises:
        ValueError: other lengths, or no pair.
    """
    after, before = np.asarray(after, np.float64), np.asarray(before, np.float64)
    if after.shape != before.shape:
        raise ValueError(f"{after.shape} and {before.shape} are no pairs")
    return mean(after - before, seed)


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
