"""Signals that ask a run to stop: it ends with a checkpoint after the step under way."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Stop:
    """Turns SIGTERM and SIGINT into a flag while it is entered (in the main thread only)."""

    def __init__(self) -> None:
        self.asked = False

    def _ask(self, number: int, _frame: Any) -> None:
        if self.asked:  # a second one means it
            raise KeyboardInterrupt
        self.asked = True
        print(f"stopping after this step ({signal.Signals(number).name})", flush=True)

    @contextlib.contextmanager
    def catching(self) -> Iterator[Stop]:
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        old = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
