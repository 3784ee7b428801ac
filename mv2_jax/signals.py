"""Stopping in order: a command told to end cleans up as it does after Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no hangup
_stopped = False


def stopped() -> bool:
    """Whether a signal came: what a library raised may only be what became of the interrupt."""
    return _stopped


@contextmanager
def stopped_in_order() -> Iterator[None]:
    """Ends by KeyboardInterrupt when told to, or when the terminal is closed.

    Python would leave scratch files behind. What is ignored, as under nohup, stays so.
    """
    global _stopped
    _stopped = False
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> NoReturn:
        global _stopped
        _stopped = True
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.signal(number, stop) for number in heard]
    try:
        yield
    finally:
        for number, handler in zip(heard, before):
            signal.signal(number, handler)
