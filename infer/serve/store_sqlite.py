"""Jobs of one machine: a table of SQLite in their folder."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from mv2_jax.infer.serve.store import ATTEMPTS, DIED, EXPLANATION, Job, Store, ending, job_of

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


class SqliteStore(Store):
    """See `serve.store`. One worker at a time: `recover` takes what any other had in hand."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        """Raises OSError where the folder cannot be written, sqlite3.Error for its table."""
        super().__init__(folder, clock)
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
        with self._lock:
            self._db.close()

    def add(self, job_id: str, kind: str, client: str, asked: Mapping[str, Any]) -> Job:
        row = (job_id, kind, "queued", client, json.dumps(asked), self._clock())
        with self._change() as db:
            new = db.execute(
                "INSERT INTO jobs (id, kind, status, client, asked, created) VALUES (?,?,?,?,?,?) "
                "ON CONFLICT DO NOTHING",
                row,
            ).rowcount
            if new:
                _count(db, "accepted", kind)
        job = self.get(job_id)
        assert job is not None
        return job

    def get(self, job_id: str) -> Job | None:
        found = self._rows("SELECT * FROM jobs WHERE id = ? AND status != 'deleted'", job_id)
        return found[0] if found else None

    def page(self, after: Job | None, limit: int, newest_first: bool) -> tuple[list[Job], bool]:
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        where, given = ("AND number " + sign + " ?", [after.number]) if after else ("", [])
        found = self._rows(
            f"SELECT * FROM jobs WHERE status != 'deleted' AND kind != '{EXPLANATION}' {where} "
            f"ORDER BY number {order} LIMIT ?",
            *given,
            limit + 1,
        )
        return found[:limit], len(found) > limit

    def _delete(self, job_id: str) -> str | None:
        with self._change() as db:
            row = db.execute(
                "SELECT status FROM jobs WHERE id = ? AND status != 'deleted'", (job_id,)
            ).fetchone()
            if row is None:
                return None
            if row["status"] == "in_progress":
                db.execute("UPDATE jobs SET status = 'deleted' WHERE id = ?", (job_id,))
            else:
                db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
            _count(db, "deleted", row["status"])
            return row["status"]

    def waiting(self, client: str | None = None) -> int:
        where, given = (" AND client = ?", (client,)) if client else ("", ())
        return self._one("SELECT COUNT(*) FROM jobs WHERE status = 'queued'" + where, *given)

    def ahead(self, job: Job) -> int:
        return self._one(
            "SELECT COUNT(*) FROM jobs WHERE status = 'queued' AND number < ?", job.number
        )

    def counts(self) -> dict[str, int]:
        with self._lock:
            found = self._db.execute("SELECT status, COUNT(*) FROM jobs GROUP BY status").fetchall()
        return {status: count for status, count in found}

    def totals(self) -> list[tuple[str, str, float]]:
        with self._lock:
            return [tuple(row) for row in self._db.execute("SELECT * FROM totals")]

    def _ids(self) -> Collection[str]:
        with self._lock:
            return {row["id"] for row in self._db.execute("SELECT id FROM jobs")}

    def claim(self, owner: str) -> Job | None:
        with self._change() as db:
            row = db.execute(
                "UPDATE jobs SET status = 'in_progress', owner = ?, started = ?, progress = '{}', "
                "attempts = attempts + 1 WHERE number = (SELECT number FROM jobs WHERE "
                "status = 'queued' ORDER BY number LIMIT 1) RETURNING *",
                (owner, self._clock()),
            ).fetchone()
        return job_of(row) if row else None

    def held(self, job: Job) -> bool:
        return bool(
            self._one(
                "SELECT COUNT(*) FROM jobs WHERE id = ? AND owner = ? AND status = 'in_progress'",
                job.id,
                job.owner,
            )
        )

    def tell(self, job: Job, progress: Mapping[str, Any]) -> None:
        with self._change() as db:
            db.execute(
                "UPDATE jobs SET progress = ? WHERE id = ? AND owner = ?",
                (json.dumps(progress), job.id, job.owner),
            )

    def _end(
        self, job: Job, status: str, column: str, value: str,
        counts: list[tuple[str, str, float]],
    ) -> bool:  # fmt: skip
        now = self._clock()
        with self._change() as db:
            done = db.execute(
                f"UPDATE jobs SET status = ?, ended = ?, {column} = ? WHERE id = ? AND owner = ? "
                "AND status = 'in_progress'",
                (status, now, value, job.id, job.owner),
            ).rowcount
            if done:
                for count in (*counts, *ending(job, status, now)):
                    _count(db, *count)
        return bool(done)

    def release(self, owner: str) -> None:
        with self._change() as db:
            db.execute(
                "UPDATE jobs SET status = 'queued', attempts = attempts - 1, owner = NULL, "
                "started = NULL, progress = '{}' WHERE owner = ? AND status = 'in_progress'",
                (owner,),
            )

    def _recover(self, owner: str | None) -> list[str]:
        mine, given = (" AND owner = ?", (owner,)) if owner else ("", ())
        with self._change() as db:
            gone = db.execute(
                "DELETE FROM jobs WHERE status = 'deleted'" + mine + " RETURNING id", given
            ).fetchall()
            lost = db.execute(
                "UPDATE jobs SET status = 'failed', ended = ?, error = ? WHERE "
                "status = 'in_progress' AND attempts >= ?" + mine + " RETURNING kind",
                (self._clock(), DIED, ATTEMPTS, *given),
            ).fetchall()
            for row in lost:
                _count(db, "failed", row["kind"])
            db.execute(
                "UPDATE jobs SET status = 'queued', owner = NULL, started = NULL, progress = '{}' "
                "WHERE status = 'in_progress'" + mine,
                given,
            )
        return [row["id"] for row in gone]

    def _forget(self, job: Job) -> bool:
        with self._change() as db:
            db.execute("DELETE FROM jobs WHERE id = ? AND status = 'deleted'", (job.id,))
            return db.execute("SELECT 1 FROM jobs WHERE id = ?", (job.id,)).fetchone() is None

    def _change(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._db, self._lock)

    def _rows(self, query: str, *given: Any) -> list[Job]:
        with self._lock:
            return [job_of(row) for row in self._db.execute(query, given).fetchall()]

    def _one(self, query: str, *given: Any) -> int:
        with self._lock:
            return int(self._db.execute(query, given).fetchone()[0])


def _count(db: sqlite3.Connection, name: str, label: str, value: float = 1) -> None:
    db.execute(
        "INSERT INTO totals VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = value + ?",
        (name, label, value, value),
    )
