"""Stopping in order: a command told to end cleans up as it does after Ctrl-C."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no hangup
_AGAIN = 0.05  # seconds until an interrupt that was swallowed comes again
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

    def stop(_: int, frame: FrameType | None) -> None:
        global _stopped
        _stopped = True
        if _importing(frame):
            _leave()
        raise KeyboardInterrupt

    def lost(unraisable: sys.UnraisableHookArgs) -> None:
        """Sends it again where it came out of a destructor or a callback, which swallows it."""
        if unraisable.exc_type is KeyboardInterrupt and heard:
            threading.Timer(_AGAIN, _send, (heard[0],)).start()
        else:
            hook(unraisable)

    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.signal(number, stop) for number in heard]
    hook, sys.unraisablehook = sys.unraisablehook, lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in zip(heard, before):
            signal.signal(number, handler)


def _send(number: int) -> None:
    """Sends a signal to the main thread, which it wakes where it can."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        _thread.interrupt_main(signal.Signals(number))


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: libraries in C++ crash where that raises."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave() -> None:
    """Ends the process at once, if nothing half written would stay."""
    files = sys.modules.get("mv2_jax.files")
    if files is not None and files.unfinished:
        return
    with suppress(Exception):  # the signal may have come in the middle of a line
        sys.stdout.flush()
    os.write(2, b"mv2: error: stopped\n")
    os._exit(130)
