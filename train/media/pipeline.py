"""Samples read ahead in threads, by Grain, whose state is the step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from mv2_jax.errors import InputError

LAST = 2**62  # samples: no run is that long


class Rows:
    """This process's rows of all steps as one endless list: places 0, 1, 2 ...

    Steps are of several kinds that take turns, each with rows of its own.

    Args:
        kinds: the kind of each step of a turn.
        rows: of each kind, which of the batch's rows are this process's.
    """

    def __init__(self, kinds: Sequence[int], rows: Sequence[np.ndarray]) -> None:
        self.kinds, self.rows = list(kinds), rows
        self.counts = [len(rows[kind]) for kind in self.kinds]
        self.before = np.concatenate([[0], np.cumsum(self.counts)])

    def first(self, step: int) -> int:
        """The place of a step's first row."""
        turn, within = divmod(step, len(self.kinds))
        return turn * int(self.before[-1]) + int(self.before[within])

    def count(self, step: int) -> int:
        """How many rows a step has."""
        return self.counts[step % len(self.kinds)]

    def at(self, place: int) -> tuple[int, int, int]:
        """What lies at a place: its step, the step's kind, and the row of the whole batch."""
        turn, offset = divmod(place, int(self.before[-1]))
        within = int(np.searchsorted(self.before, offset, side="right")) - 1
        kind = self.kinds[within]
        row = int(self.rows[kind][offset - int(self.before[within])])
        return turn * len(self.kinds) + within, kind, row

    def own_step(self, step: int) -> int:
        """How many steps of its kind lie before a step: each kind goes at its own pace."""
        turn, within = divmod(step, len(self.kinds))
        kind = self.kinds[within]
        return turn * self.kinds.count(kind) + self.kinds[:within].count(kind)


def in_threads(
    load: Callable[[int], Any], order: Rows, start: int, threads: int, ahead: int
) -> Iterator[tuple[int, list[Any]]]:
    """(step, what `load` makes of the places of its rows), from the step `start` on, without end.

    Args:
        threads: how many places are loaded side by side.
        ahead: places that are loaded before they are asked for.

    Raises:
        InputError: `load` did.
    """

    def guarded(place: int) -> Any:
        try:
            return load(place)
        except InputError as error:  # Grain would write more into its message
            return error

    places = grain.MapDataset.range(order.first(start), LAST)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead))
    loaded = iter(places.map(guarded).to_iter_dataset(options))
    step = start
    while True:
        found = [next(loaded) for _ in range(order.count(step))]
        for one in found:
            if isinstance(one, InputError):
                raise one
        yield step, found
        step += 1
