"""Keeps one worker process alive."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from mv2_jax.infer.serve.store import Store
from mv2_jax.infer.serve.worker import QUEUE, READY

_LONGEST_WAIT = 30.0  # seconds between two starts of a worker that dies at once


class Supervisor:
    """Starts a worker, and another one whenever it dies.

    Args:
        command: of the worker's process; the store's folder and a name for it are added.
        more: what stands behind them.
        queue: that holds the store's table.
    """

    def __init__(
        self, store: Store, command: Sequence[str], more: Sequence[str] = (),
        queue: str | None = None,
    ) -> None:  # fmt: skip
        self._env = {name: value for name, value in os.environ.items() if name != QUEUE}
        self._env |= {QUEUE: queue} if queue else {}
        self._store, self._command, self._more = store, list(command), list(more)
        self._process: Any = None
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._name = ""
        self.code: int | None = None
        self.restarts = 0

    def start(self) -> None:
        """Starts the first worker, and the thread that looks after it."""
        self._begin()
        threading.Thread(target=self._keep, daemon=True).start()

    def wait(self) -> bool:
        """Waits for the first worker to be ready; False where it ended instead (`code`)."""
        while not self._ready.wait(0.05):
            if self._ended.is_set():
                return False
        return True

    @property
    def ready(self) -> bool:
        """Whether there is a worker that has compiled its programs."""
        return self._ready.is_set()

    @property
    def pid(self) -> int:
        """The worker's process."""
        return self._process.pid

    def wake(self) -> None:
        """Tells the worker that a job may be there."""
        with suppress(OSError, ValueError):
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def stop(self) -> None:
        """Ends the worker; what it has in hand is queued again."""
        self._stopping.set()
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            with suppress(Exception):  # the next worker does it too
                self._store.recover(self._name)

    def _begin(self) -> None:
        self._name = secrets.token_hex(8)
        # A session of its own: Ctrl-C is for the server, which ends it in order.
        self._process = subprocess.Popen(
            [*self._command, str(self._store.folder), self._name, *self._more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=self._env,
        )
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()

    def _listen(self, process: Any) -> None:
        for line in process.stdout:
            if line.decode(errors="replace").strip() == READY:
                self._ready.set()
            else:
                sys.stderr.write(line.decode(errors="replace"))

    def _keep(self) -> None:
        wait = 0.0
        while True:
            began = time.monotonic()
            code = self._process.wait()
            if self._stopping.is_set():
                return
            was_ready = self._ready.is_set()
            self._ready.clear()
            with suppress(Exception):  # the next worker does it too
                self._store.recover(self._name)
            if not was_ready and not self.restarts:  # the first one, which never came to work
                self.code = code
                self._ended.set()
                return
            print(f"mv2: the worker died ({code}); another one is started", file=sys.stderr,
                  flush=True)  # fmt: skip
            wait = 0.0 if time.monotonic() - began > 60 else min(_LONGEST_WAIT, 2 * wait + 0.5)
            if self._stopping.wait(wait if not was_ready else 0.0):
                return
            self.restarts += 1
            self._begin()
