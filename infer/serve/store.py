"""Jobs in a folder: one SQLite table, and a folder of files a job.

A job is accepted once its row is committed, and from then on it is made once, whatever dies: it is
`queued`; the worker that begins it makes it `in_progress`; it is `completed` once its file is whole
on disk, or `failed` with a reason. What a dead worker had in hand is queued again. `deleted` is for
a job that a worker still has in hand: the worker sees it at its next step.

The table is the queue. A queue library over it (huey and its like) takes a task out before it is
done, so that a kill loses it, or it would have to be kept here again.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ATTEMPTS = 3
"""How often a job may take its worker down before it is given up."""

_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    client TEXT NOT NULL,
    asked TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    owner TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    progress TEXT NOT NULL DEFAULT '{}',
    result TEXT,
    error TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, number);
CREATE TABLE IF NOT EXISTS totals (
    name TEXT NOT NULL, label TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (name, label)
);
"""


EXPLANATION = "explanation"
"""A job that explains a video. It belongs to it: it is in no list, and goes when the video goes."""


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


def new_id() -> str:
    """A name that nobody can guess."""
    return f"video_{secrets.token_hex(16)}"


def explanation_of(job_id: str) -> str:
    """The name of the job that explains a video: of several requests for it, one is made."""
    return f"{job_id}-{EXPLANATION}"


@contextmanager
def transaction(db: sqlite3.Connection, lock: Any) -> Iterator[sqlite3.Connection]:
    """A transaction that no other thread (by the lock) or process interrupts."""
    with lock:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


class Store:
    """The jobs of a folder. May be used from several threads and processes at once."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        """Raises OSError where the folder cannot be written, sqlite3.Error for its table."""
        self.folder, self._clock = folder, clock
        self.files = folder / "jobs"
        self.files.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(
            folder / "jobs.sqlite3", timeout=30, isolation_level=None, check_same_thread=False
        )
        self._db.row_factory = sqlite3.Row
        # An accepted job is to outlive a power cut, too.
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_TABLES)

    def close(self) -> None:
        """Closes the table."""
        with self._lock:
            self._db.close()

    def place(self, job_id: str) -> Path:
        """The folder of a job's files."""
        return self.files / job_id

    # For the server.

    def add(self, job_id: str, kind: str, client: str, asked: Mapping[str, Any]) -> Job:
        """Accepts a job."""
        row = (job_id, kind, "queued", client, json.dumps(asked), self._clock())
        with self._change() as db:
            db.execute(
                "INSERT INTO jobs (id, kind, status, client, asked, created) VALUES (?,?,?,?,?,?)",
                row,
            )
            _count(db, "accepted", kind)
        job = self.get(job_id)
        assert job is not None
        return job

    def get(self, job_id: str) -> Job | None:
        """A job; None where there is none, or it is deleted."""
        found = self._rows("SELECT * FROM jobs WHERE id = ? AND status != 'deleted'", job_id)
        return found[0] if found else None

    def page(self, after: Job | None, limit: int, newest_first: bool) -> tuple[list[Job], bool]:
        """Up to `limit` videos beyond `after`, and whether there are more."""
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        where, given = ("AND number " + sign + " ?", [after.number]) if after else ("", [])
        found = self._rows(
            f"SELECT * FROM jobs WHERE status != 'deleted' AND kind != '{EXPLANATION}' {where} "
            f"ORDER BY number {order} LIMIT ?",
            *given,
            limit + 1,
        )
        return found[:limit], len(found) > limit

    def delete(self, job_id: str) -> bool:
        """Deletes a job and its files; one that runs stops at its next step. Whether there was
        one."""
        with self._change() as db:
            row = db.execute(
                "SELECT status FROM jobs WHERE id = ? AND status != 'deleted'", (job_id,)
            ).fetchone()
            if row is None:
                return False
            running = row["status"] == "in_progress"
            if running:
                db.execute("UPDATE jobs SET status = 'deleted' WHERE id = ?", (job_id,))
            else:
                db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
            _count(db, "deleted", row["status"])
        if not running:
            shutil.rmtree(self.place(job_id), ignore_errors=True)
        return True

    def waiting(self, client: str | None = None) -> int:
        """How many jobs are queued: all, or one client's."""
        where, given = (" AND client = ?", (client,)) if client else ("", ())
        return self._one("SELECT COUNT(*) FROM jobs WHERE status = 'queued'" + where, *given)

    def ahead(self, job: Job) -> int:
        """How many queued jobs will be begun before a queued one."""
        return self._one(
            "SELECT COUNT(*) FROM jobs WHERE status = 'queued' AND number < ?", job.number
        )

    def counts(self) -> dict[str, int]:
        """{status: how many jobs}."""
        with self._lock:
            found = self._db.execute("SELECT status, COUNT(*) FROM jobs GROUP BY status").fetchall()
        return {status: count for status, count in found}

    def totals(self) -> list[tuple[str, str, float]]:
        """(name, label, value) of everything counted since the folder was made."""
        with self._lock:
            return [tuple(row) for row in self._db.execute("SELECT * FROM totals")]

    def sweep(self) -> None:
        """Removes files that belong to no job: a server was killed between the two."""
        with self._lock:
            known = {row["id"] for row in self._db.execute("SELECT id FROM jobs")}
        for path in self.files.iterdir():
            if path.name not in known:
                shutil.rmtree(path, ignore_errors=True)

    # For the worker.

    def claim(self, owner: str) -> Job | None:
        """The job queued longest, now in progress in this worker's hands; None where none is."""
        with self._change() as db:
            row = db.execute(
                "UPDATE jobs SET status = 'in_progress', owner = ?, started = ?, progress = '{}', "
                "attempts = attempts + 1 WHERE number = (SELECT number FROM jobs WHERE "
                "status = 'queued' ORDER BY number LIMIT 1) RETURNING *",
                (owner, self._clock()),
            ).fetchone()
        return _job(row) if row else None

    def held(self, job: Job) -> bool:
        """Whether a job is still the worker's that claimed it."""
        return bool(
            self._one(
                "SELECT COUNT(*) FROM jobs WHERE id = ? AND owner = ? AND status = 'in_progress'",
                job.id,
                job.owner,
            )
        )

    def tell(self, job: Job, progress: Mapping[str, Any]) -> None:
        """Says where a job stands."""
        with self._change() as db:
            db.execute(
                "UPDATE jobs SET progress = ? WHERE id = ? AND owner = ?",
                (json.dumps(progress), job.id, job.owner),
            )

    def complete(self, job: Job, result: Mapping[str, Any]) -> bool:
        """A job's files are whole on disk. False where it is no longer this worker's."""
        seconds = result.get("durations", {})
        with self._change() as db:
            if not self._end(db, job, "completed", result=json.dumps(result)):
                return False
            for stage, value in seconds.items():
                _count(db, "stage_seconds", stage, value)
                _count(db, "stage_runs", stage)
        return True

    def fail(self, job: Job, code: str, message: str) -> bool:
        """Gives a job up, with a reason. False where it is no longer this worker's."""
        with self._change() as db:
            return self._end(
                db, job, "failed", error=json.dumps({"code": code, "message": message})
            )

    def _end(self, db: sqlite3.Connection, job: Job, status: str, **column: str) -> bool:
        (name, value), now = next(iter(column.items())), self._clock()
        done = db.execute(
            f"UPDATE jobs SET status = ?, ended = ?, {name} = ? WHERE id = ? AND owner = ? AND "
            "status = 'in_progress'",
            (status, now, value, job.id, job.owner),
        ).rowcount
        if done:
            _count(db, status, job.kind)
            _count(db, "wait_seconds", job.kind, (job.started or now) - job.created)
            _count(db, "run_seconds", job.kind, now - (job.started or now))
        return bool(done)

    def release(self, owner: str) -> None:
        """Queues again what a worker has in hand that stops in order."""
        with self._change() as db:
            db.execute(
                "UPDATE jobs SET status = 'queued', attempts = attempts - 1, owner = NULL, "
                "started = NULL, progress = '{}' WHERE owner = ? AND status = 'in_progress'",
                (owner,),
            )

    def recover(self, owner: str | None = None) -> None:
        """Queues again what a dead worker (or any) had in hand, and forgets what is deleted.

        Only where that worker is known to be dead. A job that took its worker down `ATTEMPTS` times
        has failed.
        """
        mine, given = (" AND owner = ?", (owner,)) if owner else ("", ())
        reason = json.dumps(
            {
                "code": "worker_died",
                "message": f"the worker died {ATTEMPTS} times while it made this video; it may "
                "need more memory than there is",
            }
        )
        with self._change() as db:
            gone = db.execute(
                "DELETE FROM jobs WHERE status = 'deleted'" + mine + " RETURNING id", given
            ).fetchall()
            lost = db.execute(
                "UPDATE jobs SET status = 'failed', ended = ?, error = ? WHERE "
                "status = 'in_progress' AND attempts >= ?" + mine + " RETURNING kind",
                (self._clock(), reason, ATTEMPTS, *given),
            ).fetchall()
            for row in lost:
                _count(db, "failed", row["kind"])
            db.execute(
                "UPDATE jobs SET status = 'queued', owner = NULL, started = NULL, progress = '{}' "
                "WHERE status = 'in_progress'" + mine,
                given,
            )
        for row in gone:
            shutil.rmtree(self.place(row["id"]), ignore_errors=True)

    def forget(self, job: Job) -> None:
        """Removes a job that was deleted while its worker had it in hand, with its files."""
        shutil.rmtree(self.place(job.id), ignore_errors=True)
        with self._change() as db:
            db.execute("DELETE FROM jobs WHERE id = ? AND status = 'deleted'", (job.id,))

    def _change(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._db, self._lock)

    def _rows(self, query: str, *given: Any) -> list[Job]:
        with self._lock:
            return [_job(row) for row in self._db.execute(query, given).fetchall()]

    def _one(self, query: str, *given: Any) -> int:
        with self._lock:
            return int(self._db.execute(query, given).fetchone()[0])


def _count(db: sqlite3.Connection, name: str, label: str, value: float = 1) -> None:
    db.execute(
        "INSERT INTO totals VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = value + ?",
        (name, label, value, value),
    )


def _job(row: sqlite3.Row) -> Job:
    fields = dict(row)
    for name, empty in (("asked", {}), ("progress", {}), ("result", {}), ("error", None)):
        fields[name] = json.loads(fields[name]) if fields[name] else empty
    return Job(**fields)
