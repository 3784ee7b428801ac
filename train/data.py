"""Feeding the loop: a thread that prepares the next batch while the device works."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import jax

from mv2_jax.train.task import Batch

_END = object()


class Prefetch:
    """Iterates `batches` in a thread, one batch ahead. Close it, or use it with `with`.

    What the source raises, the consumer gets. Values are placed by `place` in the thread.
    """

    def __init__(self, batches: Iterator[Batch], place: Any = None) -> None:
        self._queue: queue.Queue = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        self._place = place or (lambda batch: batch)
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

    def __iter__(self) -> Prefetch:
        return self

    def __next__(self) -> Batch:
        item = self._queue.get()
        if item is _END:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Ends the thread; the batch it holds is dropped."""
        self._stop.set()
        self._thread.join(timeout=60)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
