"""Which samples a step sees: buckets, epochs and mixtures, from the step's number alone.

A batch holds samples of one bucket (one length, one size). A bucket's samples come in an endless
row, each once an epoch, in another order in each; what does not fill a batch at an epoch's end
waits for the next, so that nothing is left out or repeated. A round is what all samples come to
once: how many batches each bucket gives it follows from their numbers, and their order in it is
drawn. All of this can be worked out for any step by itself. So the step is the whole state of the
data: what a run resumes with does not depend on what was read, by whom, or by how many processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from grain.experimental import index_shuffle

from mv2_jax.errors import InputError

LISTED = 2**16  # samples up to which an order is made as a list; index_shuffle is slow on few
SHARES = 4096  # positions after which a mixture repeats: shares are rounded to so many parts


@dataclass(frozen=True)
class Pick:
    """A sample for a row of a batch: the `number` of a source's, seen for the `visit`th time."""

    source: int
    number: int
    visit: int


@dataclass(frozen=True)
class Members:
    """A source's samples in a bucket. `rate`: how many of them a round sees."""

    source: int
    numbers: np.ndarray
    rate: Fraction


class Plan:
    """The samples of every step.

    Args:
        buckets: {(frames, (height, width)): {source: its samples' numbers}}.
        weights: how much of the whole each source is to give; None: by their numbers of samples.
        batch: samples a step.
        seed: of all orders.

    Raises:
        InputError: there is no sample at all, or weights that leave none.
    """

    def __init__(
        self,
        buckets: Mapping[Any, Mapping[int, Sequence[int]]],
        weights: Mapping[int, float] | None,
        batch: int,
        seed: int,
    ) -> None:
        self.batch, self.seed = batch, seed
        counts: dict[int, int] = {}
        for held in buckets.values():
            for source, numbers in held.items():
                counts[source] = counts.get(source, 0) + len(numbers)
        if not any(counts.values()):
            raise InputError("no sample is left to train on")
        rounds = _rounds(counts, weights)
        self.keys, self.members = [], []
        for key in sorted(buckets):
            held = [
                Members(source, np.asarray(numbers), rounds[source] * Fraction(len(numbers), n))
                for source, numbers in sorted(buckets[key].items())
                if len(numbers) and rounds[source] and (n := counts[source])
            ]
            if held:
                self.keys.append(key)
                self.members.append(held)
        self.rates = [sum(m.rate for m in held) / batch for held in self.members]
        self.tables = [_table([m.rate for m in held]) for held in self.members]
        self._order = lru_cache(maxsize=4)(self._order_of)
        self._listed = lru_cache(maxsize=64)(self._listed_of)

    def step(self, step: int) -> tuple[Any, list[Pick]]:
        """A step's bucket and the samples of its rows."""
        number = self._round(step)
        which, batch = self._order(number)[step - self._before(number)]
        first = batch * self.batch
        return self.keys[which], [self.pick(which, first + row) for row in range(self.batch)]

    def pick(self, which: int, position: int) -> Pick:
        """The sample at a position of a bucket's endless row."""
        order, before, counts = self.tables[which]
        period, offset = divmod(position, len(order))
        one = int(order[offset])
        held = self.members[which][one]
        visit, place = divmod(period * int(counts[one]) + int(before[offset]), len(held.numbers))
        return Pick(held.source, self._shuffled(which, one, visit, place), visit)

    def _shuffled(self, which: int, one: int, visit: int, place: int) -> int:
        """The number at a place of a visit's order."""
        held = self.members[which][one]
        if len(held.numbers) <= LISTED:
            return int(self._listed(which, one, visit)[place])
        seed = int(np.random.default_rng([self.seed, which, held.source, visit]).integers(2**31))
        found = index_shuffle(place, max_index=len(held.numbers) - 1, seed=seed, rounds=4)
        return int(held.numbers[found])

    def _listed_of(self, which: int, one: int, visit: int) -> np.ndarray:
        held = self.members[which][one]
        return np.random.default_rng([self.seed, which, held.source, visit]).permutation(
            held.numbers
        )

    def others(self, key: Any, pick: Pick) -> Iterator[Pick]:
        """What stands in for a sample that cannot be read: the others of its source and bucket."""
        (held,) = (m for m in self.members[self.keys.index(key)] if m.source == pick.source)
        at = int(np.flatnonzero(held.numbers == pick.number)[0])
        for number in np.roll(held.numbers, -at - 1)[:-1]:
            yield Pick(pick.source, int(number), pick.visit)

    def _before(self, number: int) -> int:
        """How many steps lie before a round."""
        return sum(int(number * rate) for rate in self.rates)

    def _round(self, step: int) -> int:
        low, high = 0, 1
        while self._before(high) <= step:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._before(middle) <= step else (low, middle)
        return low

    def _order_of(self, number: int) -> list[tuple[int, int]]:
        """A round's batches in order: (bucket, the bucket's batch). Which bucket's turn it is is
        drawn; a bucket's own batches come one after the other."""
        firsts = [int(number * rate) for rate in self.rates]
        counts = [int((number + 1) * rate) - first for rate, first in zip(self.rates, firsts)]
        turns = np.repeat(np.arange(len(counts)), counts)
        following, order = list(firsts), []
        for which in np.random.default_rng([self.seed, number]).permutation(turns):
            order.append((int(which), following[which]))
            following[which] += 1
        return order


def _rounds(counts: Mapping[int, int], weights: Mapping[int, float] | None) -> dict[int, Fraction]:
    """How many samples of each source a round sees: its own, or its weight's share of all."""
    if weights is None:
        return {source: Fraction(count) for source, count in counts.items()}
    exact = {source: Fraction(str(weights[source])) for source in counts if counts[source]}
    whole = sum(exact.values())
    if min(exact.values()) < 0 or not whole:
        raise InputError("data.mix: weights are 0 or more, and one of them is more than 0")
    total = sum(counts.values())
    return {source: total * exact.get(source, Fraction(0)) / whole for source in counts}


def _table(rates: Sequence[Fraction]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A period of a mixture: whose turn each position is, how often it was theirs before in the
    period, and how often it is theirs in all."""
    if len(rates) == 1:
        return np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1, np.int64)
    whole = sum(rates)
    counts = np.array([max(1, round(SHARES * rate / whole)) for rate in rates])
    # Each source's turns lie evenly in the period.
    times = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    owners = np.repeat(np.arange(len(counts)), counts)
    order = owners[np.argsort(times, kind="stable")]
    before = np.empty_like(order)
    for one in range(len(counts)):
        before[order == one] = np.arange(counts[one])
    return order, before, counts
