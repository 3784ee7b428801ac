"""The process that owns the devices: it takes one job after another and makes it.

It is started by the server (`serve.supervisor`), says `READY` on standard output once its programs
are compiled, and ends when its standard input does, that is when the server is gone. Whatever it
has in hand is then queued again. It may be killed at any moment: see `serve.store`.
"""

from __future__ import annotations

import fcntl
import gc
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol

from mv2_jax.errors import InputError
from mv2_jax.infer.serve import store as stores
from mv2_jax.infer.serve.store import FAULTS, Job, Store, Unreachable, last_file

READY = "mv2-serve-ready"
QUEUE = "MV2_SERVE_QUEUE"
"""The variable of the queue's address, which may hold a password: command lines are seen by all."""
_TELL = 0.1  # seconds between two reports of progress, at least
_PATIENCE = 5.0  # seconds between two tries to write down how a job ended


class Stopped(Exception):
    """The job was deleted: nobody wants it any more."""


class Maker(Protocol):
    """What makes jobs' files."""

    def warm(self) -> None:
        """Loads the weights and compiles what jobs will need. Raises InputError."""

    def make(self, job: Job, folder: Path, report: Report) -> Mapping[str, Any]:
        """Makes a job's files in its folder; the last to appear is `store.last_file`.

        Returns what is to be told of it. Raises InputError, OSError, or `Stopped` from `report`.
        """

    def found(self, job: Job, folder: Path) -> Mapping[str, Any]:
        """What is to be told of a video that was made before its worker was killed."""


class Report:
    """Where a job stands, told to the store. Made to be called as `progress(stage, done, total)`.

    Every call raises `Stopped` where the job is deleted meanwhile.
    """

    def __init__(self, store: Store, job: Job) -> None:
        self._store, self._job = store, job
        self._began, self._told = time.monotonic(), 0.0
        self.notes: list[str] = []
        self.durations: dict[str, float] = {}
        self._state: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        compiling = stage.startswith("compiling ")
        stage = stage.removeprefix("compiling ")
        changed = (stage, compiling) != (self._state.get("stage"), self._state.get("compiling"))
        if stage != self._state.get("stage"):
            self._close()
        self._state |= {"stage": stage, "compiling": compiling and done < total}
        if not compiling:
            self._state |= {"done": done, "total": total}
        elif changed:
            self._state |= {"done": 0, "total": 0}
        self.tell(changed)

    def tell(self, at_once: bool = True) -> None:
        """Writes it down, but not too often. Raises Stopped."""
        with suppress(Unreachable):  # a queue of several machines may be away for a while
            self._tell(at_once)

    def _tell(self, at_once: bool) -> None:
        if not self._store.held(self._job):
            raise Stopped
        now = time.monotonic()
        if at_once or now - self._told >= _TELL:
            self._told = now
            durations = {**self.durations, **self._running(now)}
            self._store.tell(
                self._job, {**self._state, "durations": durations, "notes": self.notes}
            )

    def preview(self, name: str) -> None:
        """A file of what a stage made is there."""
        self._state["previews"] = [*self._state.get("previews", []), name]
        self.tell()

    def say(self, line: str) -> None:
        """A line for whoever asked for the video."""
        self.notes.append(line.removeprefix("mv2: warning: "))

    @contextmanager
    def loading(self):
        """Weights are loaded meanwhile."""
        self._state |= {"stage": "loading", "done": 0, "total": 0}
        self.tell()
        yield
        self._close()

    def end(self) -> None:
        """The last stage is done."""
        self._close()
        self._state.pop("stage", None)

    def _running(self, now: float) -> dict[str, float]:
        stage = self._state.get("stage")
        return {stage: round(now - self._began, 3)} if stage else {}

    def _close(self) -> None:
        now = time.monotonic()
        self.durations |= self._running(now)
        self._began = now


def run(folder: Path, name: str, maker: Maker) -> int:
    """Works until standard input ends; returns the exit code."""
    queue, wake = os.environ.get(QUEUE), threading.Event()
    with open(folder / "worker.lock", "w") if queue is None else nullcontext() as lock:
        if lock is not None:  # the worker of a server that was killed may still be ending
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            store = stores.opened(folder, queue)
            store.alive(name)
            threading.Thread(target=_listen, args=(store, name, wake), daemon=True).start()
            store.recover()
            maker.warm()
        except (InputError, OSError, Unreachable) as error:
            print(f"mv2: error: {_line(error)}", file=sys.stderr, flush=True)
            return 2 if isinstance(error, InputError) else 1
        print(READY, flush=True)
        _work(store, name, maker, wake)


def _work(store: Store, name: str, maker: Maker, wake: threading.Event) -> NoReturn:
    while True:
        try:
            job = store.claim(name)
        except FAULTS as error:  # a full disk, which may have room again, or a Redis that is away
            _wait(error)
            continue
        if job is None:
            wake.wait(1.0)
            wake.clear()
            continue
        one(store, job, maker)
        gc.collect()  # what a failed job's traceback held


def _listen(store: Store, name: str, wake: threading.Event) -> None:
    """A byte on standard input says that there may be a job; its end, that the server is gone."""
    while os.read(0, 1024):
        wake.set()
    with suppress(*FAULTS):  # else others find out that it is dead
        store.release(name)
    os._exit(0)


def one(store: Store, job: Job, maker: Maker) -> None:
    """Makes one job, and writes down how it ended."""
    folder = store.place(job.id)
    try:
        if (folder / last_file(job.kind)).exists():  # made, and killed before it could be said
            result = maker.found(job, folder)
        else:
            folder.mkdir(exist_ok=True)
            result = maker.make(job, folder, Report(store, job))
        _to_disk(folder)
        ended = _until_written(lambda: store.complete(job, result))
    except Stopped:
        ended = False
    except Exception as error:
        code, text = _reason(error)
        print(f"mv2: {job.id} failed: {text}", file=sys.stderr, flush=True)
        ended = _until_written(lambda: store.fail(job, code, text))
    if not ended:
        _until_written(lambda: store.forget(job))


def _until_written(write: Any) -> bool:
    """Whether the job was still this worker's. Waits while the table cannot be written: the file is
    there, and a state that is lost would be a job that is lost."""
    while True:
        try:
            return write()
        except FAULTS as error:
            _wait(error)


def _wait(error: Exception) -> None:
    print(f"mv2: cannot write the table of jobs: {error}", file=sys.stderr, flush=True)
    time.sleep(_PATIENCE)


def _to_disk(folder: Path) -> None:
    """Returns once the files of a folder are on the disk, not only in its cache."""
    for path in (*folder.iterdir(), folder, folder.parent):
        if path.is_file() or path.is_dir():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _reason(error: Exception) -> tuple[str, str]:
    """(code, message) of a failure, for whoever asked for the video."""
    if isinstance(error, InputError):
        return "invalid_request", _line(error)
    if isinstance(error, OSError):
        return "disk", f"the video could not be written: {(error.strerror or str(error)).lower()}"
    if isinstance(error, FAULTS):
        return "disk", f"the table of jobs could not be written: {error}"
    if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
        return "out_of_memory", "the device's memory is too small for this video; ask for a "\
            "smaller size or fewer frames"  # fmt: skip
    return "server_error", f"{type(error).__name__}: {_line(error)}"[:500]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
