"""Stopping in order: a command told to end cleans up as it does after Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def stopped_in_order() -> Iterator[None]:
    """Ends as with Ctrl-C when told to, or when the terminal is closed.

    Python would leave scratch files behind. What is ignored, as under nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # Windows has no hangup.
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.signal(number, stop) for number in heard]
    try:
        yield
    finally:
        for number, handler in zip(heard, before):
            signal.signal(number, handler)
