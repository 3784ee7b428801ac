"""Jobs of several machines: their table is a Redis, their files a folder that all of them see.

Every worker says that it lives, by a key that fades after `LEASE` seconds; what a worker had in
hand whose key is gone is queued again by another one. Each change is one script, which Redis runs
at once or not at all. One Redis, not a cluster; other servers of its protocol (Valkey) do.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mv2_jax.errors import InputError
from mv2_jax.infer.serve.store import (
    ATTEMPTS,
    DIED,
    EXPLANATION,
    Job,
    Store,
    Unreachable,
    ending,
    job_of,
)  # fmt: skip

LEASE = 20.0
"""Seconds of silence after which a worker is taken for dead."""
_ANSWER = 10.0  # seconds that Redis may take to answer
_NEW = 3600.0  # seconds that files without a job stay: another server may be about to add it
_SETTLE = 5.0  # seconds that a folder may take to show what another machine wrote there

# Keys: mv2:job:ID (hash), mv2:STATUS (IDs by number), mv2:videos (those in lists, by number),
# mv2:number, mv2:totals (hash), mv2:alive:OWNER (fades), mv2:folder, mv2:weights.
_HELPERS = """
local function row(id) return 'mv2:job:' .. id end
local function get(id, name) return redis.call('HGET', row(id), name) end
local function move(id, to)
  redis.call('ZREM', 'mv2:' .. get(id, 'status'), id)
  redis.call('HSET', row(id), 'status', to)
  redis.call('ZADD', 'mv2:' .. to, get(id, 'number'), id)
  if to == 'deleted' then redis.call('ZREM', 'mv2:videos', id) end
end
local function drop(id)
  redis.call('ZREM', 'mv2:' .. get(id, 'status'), id)
  redis.call('ZREM', 'mv2:videos', id)
  redis.call('DEL', row(id))
end
local function again(id)
  redis.call('HDEL', row(id), 'owner', 'started', 'progress')
  move(id, 'queued')
end
local function count(name, label, value)
  redis.call('HINCRBYFLOAT', 'mv2:totals', name .. '\\n' .. label, value)
end
local function held(id, owner)
  return get(id, 'status') == 'in_progress' and get(id, 'owner') == owner
end
local function all(status) return redis.call('ZRANGE', 'mv2:' .. status, 0, -1) end
"""
_SCRIPTS = {
    # One that heard no answer asks again: what is there already is not added, nor claimed, twice.
    "add": """
local id, kind = ARGV[1], ARGV[2]
if redis.call('EXISTS', row(id)) == 1 then return 0 end
local number = redis.call('INCR', 'mv2:number')
redis.call('HSET', row(id), 'number', number, 'id', id, 'kind', kind, 'status', 'queued',
  'client', ARGV[3], 'asked', ARGV[4], 'created', ARGV[5], 'attempts', 0)
redis.call('ZADD', 'mv2:queued', number, id)
if ARGV[6] == '1' then redis.call('ZADD', 'mv2:videos', number, id) end
count('accepted', kind, 1)
return 1""",
    "delete": """
local id, status = ARGV[1], get(ARGV[1], 'status')
if not status or status == 'deleted' then return false end
if status == 'in_progress' then move(id, 'deleted') else drop(id) end
count('deleted', status, 1)
return status""",
    "waiting": """
local found = 0
for _, id in ipairs(all('queued')) do
  if get(id, 'client') == ARGV[1] then found = found + 1 end
end
return found""",
    "claim": """
local owner, id = ARGV[1], nil
for _, each in ipairs(all('in_progress')) do
  if get(each, 'owner') == owner then id = each end
end
if not id then
  id = redis.call('ZRANGE', 'mv2:queued', 0, 0)[1]
  if not id then return false end
  move(id, 'in_progress')
  redis.call('HSET', row(id), 'owner', owner, 'started', ARGV[2])
  redis.call('HINCRBY', row(id), 'attempts', 1)
end
return redis.call('HGETALL', row(id))""",
    "tell": """
if get(ARGV[1], 'owner') == ARGV[2] then
  redis.call('HSET', row(ARGV[1]), 'progress', ARGV[3])
end""",
    "end": """
local id = ARGV[1]
if not held(id, ARGV[2]) then return 0 end
move(id, ARGV[3])
redis.call('HSET', row(id), 'ended', ARGV[4], ARGV[5], ARGV[6])
for _, each in ipairs(cjson.decode(ARGV[7])) do count(each[1], each[2], tostring(each[3])) end
return 1""",
    "release": """
for _, id in ipairs(all('in_progress')) do
  if get(id, 'owner') == ARGV[1] then
    redis.call('HINCRBY', row(id), 'attempts', -1)
    again(id)
  end
end
redis.call('DEL', 'mv2:alive:' .. ARGV[1])""",
    "recover": """
local function dead(id)
  local owner = get(id, 'owner')
  if ARGV[1] ~= '' then return owner == ARGV[1] end
  return redis.call('EXISTS', 'mv2:alive:' .. owner) == 0
end
local gone = {}
for _, id in ipairs(all('deleted')) do
  if dead(id) then drop(id) table.insert(gone, id) end
end
for _, id in ipairs(all('in_progress')) do
  if dead(id) then
    if tonumber(get(id, 'attempts')) >= tonumber(ARGV[2]) then
      redis.call('HSET', row(id), 'ended', ARGV[3], 'error', ARGV[4])
      move(id, 'failed')
      count('failed', get(id, 'kind'), 1)
    else
      again(id)
    end
  end
end
return gone""",
    "forget": """
if get(ARGV[1], 'status') == 'deleted' then drop(ARGV[1]) end
return redis.call('EXISTS', row(ARGV[1]))""",
}


class RedisStore(Store):
    """See `serve.store`. Any number of servers and workers, on machines that see the folder."""

    def __init__(self, folder: Path, queue: str, clock: Callable[[], float] = time.time) -> None:
        """Raises OSError where the folder cannot be written, InputError where the queue cannot be
        used or is another folder's."""
        super().__init__(folder, clock)
        try:
            import redis
        except ImportError:
            raise InputError('--queue needs redis; pip install "mv2-jax[queue]"') from None
        self._error = redis.exceptions.RedisError
        self._name = _named(queue)
        try:
            self._db = redis.Redis.from_url(
                queue,
                decode_responses=True,
                socket_timeout=_ANSWER,
                socket_connect_timeout=_ANSWER,
                health_check_interval=30,
            )
        except ValueError:
            raise InputError(
                f"--queue takes redis://HOST:PORT/N, rediss:// or unix://, not {self._name!r}; the "
                "limit of waiting jobs is --waiting"
            ) from None
        self._scripts = {
            name: self._db.register_script(_HELPERS + text) for name, text in _SCRIPTS.items()
        }
        self._trusted = time.monotonic()  # when to believe again that a silent worker is dead
        self._stop = threading.Event()
        try:
            self._agree(folder)
        except Unreachable as error:
            raise InputError(f"--queue {self._name}: {error}") from None

    def close(self) -> None:
        self._stop.set()
        self._db.close()

    def _agree(self, folder: Path) -> None:
        """Writes down in folder and table that they belong together. Raises InputError."""
        mark = folder / "queue"
        own = mark.read_text() if mark.exists() else secrets.token_hex(16)
        new = self._ask(lambda: self._db.set("mv2:folder", own, nx=True))
        known = self._ask(lambda: self._db.get("mv2:folder"))
        if new:
            mark.write_text(own)
        until = time.monotonic() + _SETTLE
        while not (mark.exists() and mark.read_text() == known):
            if mark.exists() or time.monotonic() > until:
                raise InputError(
                    f"--queue {self._name}: its jobs' files are in another folder than {folder}; "
                    "give all machines the same one by -o (a network folder), or another queue"
                )
            time.sleep(0.1)

    def serves(self, weights: str) -> None:
        known = self._ask(lambda: self._db.get("mv2:weights"))
        alive = self._ask(lambda: next(self._db.scan_iter("mv2:alive:*"), None))
        if alive and known not in (None, weights):
            raise InputError(
                f"--queue {self._name}: its jobs are made with {known}, not with {weights}; stop "
                f"those workers first (a killed one counts for {LEASE:.0f} s more)"
            )
        self._ask(lambda: self._db.set("mv2:weights", weights))

    def alive(self, owner: str) -> None:
        def say() -> None:
            while not self._stop.wait(LEASE / 4):
                with suppress(Unreachable):
                    self._lease(owner)
                    if time.monotonic() > self._trusted:
                        self.recover()

        self._lease(owner)
        threading.Thread(target=say, daemon=True).start()

    def _lease(self, owner: str) -> None:
        self._ask(lambda: self._db.set(f"mv2:alive:{owner}", "1", px=round(1000 * LEASE)))

    def add(self, job_id: str, kind: str, client: str, asked: Mapping[str, Any]) -> Job:
        listed = int(kind != EXPLANATION)
        self._run("add", job_id, kind, client, json.dumps(asked), self._clock(), listed)
        job = self.get(job_id)
        assert job is not None
        return job

    def get(self, job_id: str) -> Job | None:
        found = self._rows([job_id])
        return found[0] if found and found[0].status != "deleted" else None

    def page(self, after: Job | None, limit: int, newest_first: bool) -> tuple[list[Job], bool]:
        edge = f"({after.number}" if after else ("+inf" if newest_first else "-inf")
        low, high = ("-inf", edge) if newest_first else (edge, "+inf")
        call = self._db.zrevrangebyscore if newest_first else self._db.zrangebyscore
        ends = (high, low) if newest_first else (low, high)
        found = self._ask(lambda: call("mv2:videos", *ends, start=0, num=limit + 1))
        jobs = [job for job in self._rows(found[:limit]) if job.status != "deleted"]
        return jobs, len(found) > limit

    def waiting(self, client: str | None = None) -> int:
        if client is None:
            return self._ask(lambda: self._db.zcard("mv2:queued"))
        return self._run("waiting", client)

    def ahead(self, job: Job) -> int:
        return self._ask(lambda: self._db.zcount("mv2:queued", "-inf", f"({job.number}"))

    def counts(self) -> dict[str, int]:
        names = ("queued", "in_progress", "completed", "failed", "deleted")
        found = {name: self._ask(lambda name=name: self._db.zcard(f"mv2:{name}")) for name in names}
        return {name: count for name, count in found.items() if count}

    def totals(self) -> list[tuple[str, str, float]]:
        found = self._ask(lambda: self._db.hgetall("mv2:totals"))
        return [(*key.split("\n", 1), float(value)) for key, value in found.items()]

    def sweep(self, age: float = _NEW) -> None:
        super().sweep(age)

    def claim(self, owner: str) -> Job | None:
        found = self._run("claim", owner, self._clock())
        return _job(dict(zip(found[::2], found[1::2]))) if found else None

    def held(self, job: Job) -> bool:
        found = self._ask(lambda: self._db.hmget(f"mv2:job:{job.id}", "status", "owner"))
        return found == ["in_progress", job.owner]

    def tell(self, job: Job, progress: Mapping[str, Any]) -> None:
        self._run("tell", job.id, job.owner, json.dumps(progress))

    def release(self, owner: str) -> None:
        self._stop.set()
        self._run("release", owner)

    def _delete(self, job_id: str) -> str | None:
        return self._run("delete", job_id)

    def _ids(self) -> Collection[str]:
        prefix = "mv2:job:"
        return self._ask(
            lambda: {key.removeprefix(prefix) for key in self._db.scan_iter(f"{prefix}*", 1000)}
        )

    def _end(
        self, job: Job, status: str, column: str, value: str,
        counts: list[tuple[str, str, float]],
    ) -> bool:  # fmt: skip
        now = self._clock()
        counted = json.dumps([*counts, *ending(job, status, now)])
        return bool(self._run("end", job.id, job.owner, status, now, column, value, counted))

    def _recover(self, owner: str | None) -> list[str]:
        return self._run("recover", owner or "", ATTEMPTS, self._clock(), DIED)

    def _forget(self, job: Job) -> bool:
        return not self._run("forget", job.id)

    def _rows(self, ids: list[str]) -> list[Job]:
        def read() -> Any:
            with self._db.pipeline(transaction=False) as line:
                for each in ids:
                    line.hgetall(f"mv2:job:{each}")
                return line.execute()

        return [_job(row) for row in self._ask(read) if row] if ids else []

    def _run(self, name: str, *given: Any) -> Any:
        return self._ask(lambda: self._scripts[name](keys=[], args=given))

    def _ask(self, call: Callable[[], Any]) -> Any:
        """What Redis answers. Raises Unreachable."""
        try:
            return call()
        except self._error as error:
            # Workers could not say meanwhile that they live.
            self._trusted = time.monotonic() + LEASE
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise Unreachable(f"the queue does not answer: {reason}") from None


def _job(row: Mapping[str, str]) -> Job:
    """A hash as a job: all of it is text there."""
    times = {
        key: float(row[key]) if key in row else None for key in ("created", "started", "ended")
    }
    whole = {key: int(row[key]) for key in ("number", "attempts")}
    rest = dict.fromkeys(("owner", "progress", "result", "error"))
    return job_of({**rest, **row, **times, **whole})


def _named(queue: str) -> str:
    """A queue's address without its password, for messages."""
    try:
        parts = urlsplit(queue)
        at = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "redis://..."
    return parts._replace(netloc=at, query="").geturl()
