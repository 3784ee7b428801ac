"""Jobs: where they stand is kept in a table, and their files in a folder, one a job.

A job is accepted once its row is committed, and from then on it is made once, whatever dies: it is
`queued`; the worker that begins it makes it `in_progress`; it is `completed` once its file is whole
on disk, or `failed` with a reason. What a dead worker had in hand is queued again. `deleted` is for
a job that a worker still has in hand: the worker sees it at its next step.

The table is the queue: of one machine SQLite (`serve.store_sqlite`), of several a Redis
(`serve.store_redis`) and a folder that all of them see. A queue library (huey and its like, over
either) takes a task out before it is done, so that a kill loses it, or it would have to be kept
here again.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ATTEMPTS = 3
"""How often a job may take its worker down before it is given up."""
DIED = json.dumps(
    {
        "code": "worker_died",
        "message": f"the worker died {ATTEMPTS} times while it made this video; it may "
        "need more memory than there is",
    }
)
"""The error of such a job."""
EXPLANATION = "explanation"
"""A job that explains a video. It belongs to it: it is in no list, and goes when the video goes."""


class Unreachable(Exception):
    """The table cannot be reached now; the text says why."""


FAULTS = (sqlite3.OperationalError, Unreachable)
"""What any method of a `Store` may raise: a full disk, or a Redis that does not answer."""


def last_file(kind: str) -> str:
    """The file of a job's folder that is whole only once all of them are."""
    return "explanation.html" if kind == EXPLANATION else "video.mp4"


@dataclass(frozen=True)
class Job:
    """A row. `asked` is what was asked for, `progress` where it stands, `result` what came of it,
    `error` why it failed; times are Unix seconds."""

    number: int
    id: str
    kind: str
    status: str
    client: str
    asked: Mapping[str, Any]
    created: float
    started: float | None
    ended: float | None
    owner: str | None
    attempts: int
    progress: Mapping[str, Any]
    result: Mapping[str, Any]
    error: Mapping[str, Any] | None


def job_of(row: Mapping[str, Any]) -> Job:
    """A row as its table holds it: asked, progress, result and error as JSON, or nothing."""
    fields = dict(row)
    for name, empty in (("asked", {}), ("progress", {}), ("result", {}), ("error", None)):
        fields[name] = json.loads(fields[name]) if fields.get(name) else empty
    return Job(**fields)


def ending(job: Job, status: str, now: float) -> list[tuple[str, str, float]]:
    """What is counted when a job ends: (name, label, value)."""
    begun = job.started or now
    return [
        (status, job.kind, 1),
        ("wait_seconds", job.kind, begun - job.created),
        ("run_seconds", job.kind, now - begun),
    ]


def new_id() -> str:
    """A name that nobody can guess."""
    return f"video_{secrets.token_hex(16)}"


def explanation_of(job_id: str) -> str:
    """The name of the job that explains a video: of several requests for it, one is made."""
    return f"{job_id}-{EXPLANATION}"


class Store(ABC):
    """The jobs of a folder. May be used from several threads and processes at once.

    Methods raise one of `FAULTS` where the table cannot be read or written.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        """Raises OSError where the folder cannot be written."""
        self.folder, self._clock = folder, clock
        self.files = folder / "jobs"
        self.files.mkdir(parents=True, exist_ok=True)

    def place(self, job_id: str) -> Path:
        """The folder of a job's files."""
        return self.files / job_id

    def close(self) -> None:  # noqa: B027
        """Lets the table go."""

    def serves(self, weights: str) -> None:  # noqa: B027
        """Says which weights make its jobs. Raises InputError where other ones do."""

    def alive(self, owner: str) -> None:  # noqa: B027
        """Begins to say that a worker of this process lives, where others could not see it."""

    # For the server.

    @abstractmethod
    def add(self, job_id: str, kind: str, client: str, asked: Mapping[str, Any]) -> Job:
        """Accepts a job; one that is there already stays as it is."""

    @abstractmethod
    def get(self, job_id: str) -> Job | None:
        """A job; None where there is none, or it is deleted."""

    @abstractmethod
    def page(self, after: Job | None, limit: int, newest_first: bool) -> tuple[list[Job], bool]:
        """Up to `limit` videos beyond `after`, and whether there are more."""

    def delete(self, job_id: str) -> bool:
        """Deletes a job and its files; one that runs stops at its next step. Whether there was
        one."""
        status = self._delete(job_id)
        if status not in (None, "in_progress"):
            self._remove(job_id)
        return status is not None

    @abstractmethod
    def waiting(self, client: str | None = None) -> int:
        """How many jobs are queued: all, or one client's."""

    @abstractmethod
    def ahead(self, job: Job) -> int:
        """How many queued jobs will be begun before a queued one."""

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """{status: how many jobs}."""

    @abstractmethod
    def totals(self) -> list[tuple[str, str, float]]:
        """(name, label, value) of everything counted since the table was made."""

    def sweep(self, age: float = 0.0) -> None:
        """Removes files that belong to no job: a server was killed between the two.

        Args:
            age: seconds that they must be old, where another server may be about to add their job.
        """
        found = [path for path in self.files.iterdir() if time.time() - _made(path) >= age]
        known = self._ids()
        for path in found:
            if path.name not in known:
                self._remove(path.name)

    # For the worker.

    @abstractmethod
    def claim(self, owner: str) -> Job | None:
        """The job queued longest, now in progress in this worker's hands; None where none is."""

    @abstractmethod
    def held(self, job: Job) -> bool:
        """Whether a job is still the worker's that claimed it."""

    @abstractmethod
    def tell(self, job: Job, progress: Mapping[str, Any]) -> None:
        """Says where a job stands."""

    def complete(self, job: Job, result: Mapping[str, Any]) -> bool:
        """A job's files are whole on disk. False where it is no longer this worker's."""
        counts = [
            (name, stage, value)
            for stage, seconds in result.get("durations", {}).items()
            for name, value in (("stage_seconds", seconds), ("stage_runs", 1))
        ]
        return self._end(job, "completed", "result", json.dumps(result), counts)

    def fail(self, job: Job, code: str, message: str) -> bool:
        """Gives a job up, with a reason. False where it is no longer this worker's."""
        said = json.dumps({"code": code, "message": message})
        return self._end(job, "failed", "error", said, [])

    @abstractmethod
    def release(self, owner: str) -> None:
        """Queues again what a worker has in hand that stops in order."""

    def recover(self, owner: str | None = None) -> None:
        """Queues again what a dead worker (or any that is dead) had in hand, and forgets what is
        deleted. A job that took its worker down `ATTEMPTS` times has failed.

        Args:
            owner: the worker that is known to be dead.
        """
        for gone in self._recover(owner):
            self._remove(gone)

    def forget(self, job: Job) -> None:
        """Removes a job that was deleted while its worker had it in hand, with its files; one that
        is another worker's now stays."""
        if self._forget(job):
            self._remove(job.id)

    def _remove(self, job_id: str) -> None:
        shutil.rmtree(self.place(job_id), ignore_errors=True)

    # What a table does, each at once or not at all.

    @abstractmethod
    def _delete(self, job_id: str) -> str | None:
        """Drops a job, or makes one that is in progress `deleted`; what it was, if anything."""

    @abstractmethod
    def _ids(self) -> Collection[str]:
        """Every job's."""

    @abstractmethod
    def _end(
        self, job: Job, status: str, column: str, value: str,
        counts: list[tuple[str, str, float]],
    ) -> bool:  # fmt: skip
        """Ends a job that is in progress in its owner's hands, and adds to totals: those given,
        and its waiting and running. Whether it was."""

    @abstractmethod
    def _recover(self, owner: str | None) -> list[str]:
        """See `recover`; the jobs that are forgotten."""

    @abstractmethod
    def _forget(self, job: Job) -> bool:
        """Drops a deleted job; whether there is no such job now."""


def _made(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed meanwhile
        return time.time()


def opened(folder: Path, queue: str | None = None) -> Store:
    """The jobs of a folder, in its own table or in the queue's.

    Args:
        queue: redis://..., for several machines.

    Raises:
        OSError, sqlite3.Error: the folder or its table cannot be written.
        InputError: the queue cannot be used.
    """
    if queue is None:
        from mv2_jax.infer.serve.store_sqlite import SqliteStore

        return SqliteStore(folder)
    from mv2_jax.infer.serve.store_redis import RedisStore

    return RedisStore(folder, queue)
