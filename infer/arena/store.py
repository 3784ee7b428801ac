"""An arena in a folder: videos without names, and one SQLite file of who judged what.

A comparison is two systems' videos of one prompt. A ballot is a comparison as one rater is shown
it, on sides drawn when the rater is added, so that a reload changes nothing. A vote is a ballot's
answer on one criterion: (ballot, criterion) is unique, so nobody votes twice.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from mv2_jax.infer.serve.store_sqlite import transaction

CRITERIA = {
    "quality": "Frame quality and appeal",
    "consistency": "Temporal consistency",
    "structure": "Structural errors",
    "overall": "Overall",
}
"""The paper's three criteria (arXiv 2401.04468, section 3), and the whole."""
ANSWERS = ("left", "same", "right")
NORMAL, OVERLAP, GOLD = "normal", "overlap", "gold"

_TABLES = """
CREATE TABLE systems (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, folder TEXT NOT NULL
);
CREATE TABLE videos (
    id TEXT PRIMARY KEY, system INTEGER NOT NULL REFERENCES systems, source TEXT NOT NULL
);
CREATE TABLE comparisons (
    number INTEGER PRIMARY KEY, kind TEXT NOT NULL, prompt TEXT NOT NULL,
    first TEXT NOT NULL REFERENCES videos, second TEXT NOT NULL REFERENCES videos
);
CREATE TABLE raters (
    number INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE
);
CREATE TABLE ballots (
    id TEXT PRIMARY KEY, rater INTEGER NOT NULL REFERENCES raters, place INTEGER NOT NULL,
    comparison INTEGER NOT NULL REFERENCES comparisons, first_left INTEGER NOT NULL,
    UNIQUE (rater, place), UNIQUE (rater, comparison)
);
CREATE TABLE votes (
    ballot TEXT NOT NULL REFERENCES ballots, criterion TEXT NOT NULL, answer TEXT NOT NULL,
    seconds REAL NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (ballot, criterion)
);
"""
_SCHEMA = 1


class Taken(ValueError):
    """A ballot that has votes already, and is not said to be changed."""


class Arena:
    """The SQLite file of an arena. May be used from several threads and processes at once."""

    def __init__(self, path: Path, create: bool = False) -> None:
        """Raises sqlite3.Error where the file is no arena, or cannot be written."""
        self.path = path
        self._lock = threading.RLock()
        address = path.absolute().as_uri() + ("" if create else "?mode=rw")
        self._db = sqlite3.connect(
            address, timeout=30, isolation_level=None, check_same_thread=False, uri=True
        )
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA foreign_keys=ON")
        if create:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(
                f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version={_SCHEMA};COMMIT;"
            )
        elif self.rows("PRAGMA user_version")[0][0] != _SCHEMA:
            raise sqlite3.DatabaseError("it is no arena, or one of another version of mv2")

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()

    def video(self, name: str) -> Path:
        """The file of a video."""
        return self.path.parent / "videos" / f"{name}.mp4"

    def rows(self, query: str, *given: Any) -> list[sqlite3.Row]:
        """What a query finds."""
        with self._lock:
            return self._db.execute(query, given).fetchall()

    def fill(
        self,
        systems: Sequence[tuple[str, str]],
        videos: Sequence[tuple[str, int, str]],
        comparisons: Sequence[tuple[str, str, str, str]],
    ) -> None:
        """Writes down what is compared, once.

        Args:
            systems: (name, folder); numbers count from 0.
            videos: (id, system, source file).
            comparisons: (kind, prompt, first video, second); of gold ones the first is better.
        """
        with self._change() as db:
            db.executemany(
                "INSERT INTO systems VALUES (?, ?, ?)",
                [(number, *system) for number, system in enumerate(systems)],
            )
            db.executemany("INSERT INTO videos VALUES (?, ?, ?)", videos)
            db.executemany(
                "INSERT INTO comparisons (kind, prompt, first, second) VALUES (?, ?, ?, ?)",
                comparisons,
            )

    def add_rater(self, each: int) -> str:
        """Adds a rater, with ballots; returns the token of the link.

        The ballots are the overlap set and the gold comparisons, which every rater has, and of the
        others those that have been given out least. Their order is drawn, and sides as well, so
        that either system of a pair is left as often as right.

        Args:
            each: ballots, gold ones apart; the overlap set is a part of them.
        """
        token = secrets.token_urlsafe(16)
        with self._change() as db:
            number = db.execute("SELECT COUNT(*) FROM raters").fetchone()[0]
            db.execute("INSERT INTO raters VALUES (?, ?)", (number, token))
            rows = db.execute(
                "SELECT c.number, c.kind, COUNT(b.id) AS given, "
                "v.system * 1000 + w.system AS pair FROM comparisons c "
                "JOIN videos v ON v.id = c.first JOIN videos w ON w.id = c.second "
                "LEFT JOIN ballots b ON b.comparison = c.number GROUP BY c.number"
            ).fetchall()
            rng = np.random.default_rng(secrets.randbits(128))
            for place, (row, left) in enumerate(_drawn(rows, each, rng)):
                db.execute(
                    "INSERT INTO ballots VALUES (?, ?, ?, ?, ?)",
                    (secrets.token_hex(8), number, place, row["number"], left),
                )
        return token

    def ballots(self, token: str) -> list[sqlite3.Row]:
        """A rater's ballots in order: id, prompt, done. Empty for an unknown token."""
        return self.rows(
            "SELECT b.id, c.prompt, EXISTS (SELECT 1 FROM votes v WHERE v.ballot = b.id) AS done "
            "FROM ballots b JOIN raters r ON r.number = b.rater "
            "JOIN comparisons c ON c.number = b.comparison WHERE r.token = ? ORDER BY b.place",
            token,
        )

    def answers(self, token: str, ballot: str) -> dict[str, str] | None:
        """{criterion: answer} of a rater's ballot; None where the rater has no such ballot."""
        if not self._is_of(token, ballot):
            return None
        found = self.rows("SELECT criterion, answer FROM votes WHERE ballot = ?", ballot)
        return {row["criterion"]: row["answer"] for row in found}

    def side(self, token: str, ballot: str, side: str) -> Path | None:
        """The video on the left or right of a rater's ballot."""
        found = self.rows(
            "SELECT b.first_left, c.first, c.second FROM ballots b "
            "JOIN raters r ON r.number = b.rater JOIN comparisons c ON c.number = b.comparison "
            "WHERE r.token = ? AND b.id = ?", token, ballot,
        )  # fmt: skip
        if not found:
            return None
        row = found[0]
        return self.video(row["first"] if bool(row["first_left"]) == (side == "left")
                          else row["second"])  # fmt: skip

    def vote(
        self, token: str, ballot: str, answers: Mapping[str, str], seconds: float, change: bool
    ) -> bool:
        """Takes a ballot's answers; the same ones again are no second vote. False where the rater
        has no such ballot.

        Raises:
            Taken: there are other answers, and they are not to be changed.
        """
        with self._change() as db:
            before = self.answers(token, ballot)
            if before is None:
                return False
            if before and before != dict(answers) and not change:
                raise Taken(ballot)
            db.executemany(
                "INSERT INTO votes VALUES (?, ?, ?, ?, ?) ON CONFLICT (ballot, criterion) DO "
                "UPDATE SET answer = excluded.answer WHERE answer != excluded.answer",
                [(ballot, name, answer, seconds, time.time()) for name, answer in answers.items()],
            )
        return True

    def _is_of(self, token: str, ballot: str) -> bool:
        return bool(self.rows(
            "SELECT 1 FROM ballots b JOIN raters r ON r.number = b.rater WHERE r.token = ? "
            "AND b.id = ?", token, ballot,
        ))  # fmt: skip

    def _change(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._db, self._lock)


def _drawn(
    rows: Sequence[sqlite3.Row], each: int, rng: np.random.Generator
) -> list[tuple[sqlite3.Row, int]]:
    """(comparison, whether its first video is left) of a new rater, in order."""
    always = [row for row in rows if row["kind"] != NORMAL]
    rest = [row for row in rows if row["kind"] == NORMAL]
    wanted = max(0, each - sum(row["kind"] == OVERLAP for row in always))
    # Those given out least first, in a drawn order.
    ties = rng.permutation(len(rest))
    rest = [row for _, _, row in sorted(zip([r["given"] for r in rest], ties, rest),
                                        key=lambda item: item[:2])]  # fmt: skip
    chosen = [*always, *rest[:wanted]]
    sides: dict[Any, int] = {}
    drawn = []
    for at in rng.permutation(len(chosen)):
        row = chosen[at]
        pair = (row["kind"] == GOLD, row["pair"])
        # Of each two ballots of a pair of systems the second is the other way round.
        if pair in sides:
            left = 1 - sides.pop(pair)
        else:
            left = sides[pair] = int(rng.integers(2))
        drawn.append((row, left))
    order = rng.permutation(len(drawn))
    return [drawn[at] for at in order]
