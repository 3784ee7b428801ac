"""Feeding the loop: a thread that prepares the next batch while the device works."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from mv2_jax.errors import InputError
from mv2_jax.train.task import Batch

_END = object()


def stacked(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """Every `count` batches as one, [count, B, ...] per array.

    Raises:
        InputError: they are not of the same shapes.
    """
    while few := list(itertools.islice(batches, count)):
        shapes = [{name: np.shape(x) for name, x in one.items()} for one in few]
        if any(shape != shapes[0] for shape in shapes):
            raise InputError(
                f"steps_per_call: the batches of {count} steps must be alike, and these are of "
                f"shapes {shapes[0]} and {next(s for s in shapes if s != shapes[0])}: set it to 1"
            )
        yield {name: np.stack([one[name] for one in few]) for name in few[0]}


class Prefetch:
    """Iterates `batches` in a thread, one batch ahead. Close it, or use it with `with`.

    What the source raises, the consumer gets. Values are placed by `place` in the thread. A source
    may stand still, as files of a lost mount do: it is waited for until `given_up` says no.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        place: Any = None,
        given_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._queue: queue.Queue = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        self._place = place or (lambda batch: batch)
        self._given_up = given_up
        self._thread = threading.Thread(
            target=self._work, args=(batches,), name="prefetch", daemon=True
        )
        self._thread.start()

    def _put(self, item: Any) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def _work(self, batches: Iterator[Batch]) -> None:
        try:
            for batch in batches:
                # Rendering is dispatched asynchronously: waiting here, off the loop's thread,
                # keeps one batch in flight and not an unbounded number.
                if not self._put(jax.block_until_ready(self._place(batch))):
                    return
            self._put(_END)
        except BaseException as error:  # it is the consumer's to see
            self._put(error)

    def take(self) -> Batch | None:
        """The next batch; None where `given_up` says so before there is one.

        Raises:
            StopIteration: the source has ended.
        """
        while not self._given_up():
            with contextlib.suppress(queue.Empty):
                item = self._queue.get(timeout=0.2)
                if item is _END:
                    raise StopIteration
                if isinstance(item, BaseException):
                    raise item
                return item
        return None

    def close(self) -> None:
        """Ends the thread; the batch it holds is dropped. One whose source stands still is left."""
        self._stop.set()
        self._thread.join(timeout=1 if self._given_up() else 60)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
