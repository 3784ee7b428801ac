"""Tables of jobs, SQLite's and Redis's: the same is true of both, at every step."""

import os
import time
from collections import Counter

import pytest
import redis_server

from mv2_jax.errors import InputError
from mv2_jax.infer.serve import store_redis
from mv2_jax.infer.serve.store import ATTEMPTS, EXPLANATION, Unreachable, opened
from mv2_jax.infer.serve.store_redis import RedisStore


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    redis_server.needed()
    server = redis_server.Redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "redis"])
def store(request, tmp_path):
    queue = None
    if request.param == "redis":
        server = request.getfixturevalue("redis")
        queue = server.url
    made = opened(tmp_path / "served", queue)
    yield made
    if queue:
        made._db.flushdb()
    made.close()


def add(store, name, kind="video", client="c"):
    store.place(name).mkdir()
    return store.add(name, kind, client, {"prompt": name, "n": 3})


def add_again(store, name):
    return store.add(name, "video", "c", {"n": 4})


def test_jobs_are_begun_in_their_order_and_end_once(store):
    for name in "abc":
        job = add(store, name)
        assert (job.status, job.asked, job.attempts) == ("queued", {"prompt": name, "n": 3}, 0)
    assert add_again(store, "a").asked["n"] == 3 and store.waiting() == 3  # two asked at once
    assert store.get("x") is None and store.ahead(store.get("c")) == 2
    job = store.claim("w")
    assert (job.id, job.status, job.owner, job.attempts) == ("a", "in_progress", "w", 1)
    assert job.started >= job.created and store.held(job)
    store.tell(job, {"stage": "t2i", "done": 1})
    assert store.get("a").progress == {"stage": "t2i", "done": 1} and store.ahead(job) == 0
    assert store.complete(job, {"seed": 3, "durations": {"t2i": 0.5}})
    assert not store.complete(job, {}) and not store.fail(job, "x", "y") and not store.held(job)
    assert store.get("a").result["seed"] == 3 and store.get("a").ended >= job.started
    job = store.claim("w")
    assert store.fail(job, "disk", "it is full") and job.id == "b"
    assert store.get("b").error == {"code": "disk", "message": "it is full"}
    assert store.counts() == {"completed": 1, "failed": 1, "queued": 1}
    totals = {(name, label): value for name, label, value in store.totals()}
    assert totals["accepted", "video"] == 3 and totals["stage_seconds", "t2i"] == 0.5
    assert totals["completed", "video"] == totals["failed", "video"] == 1
    assert store.claim("w").id == "c"
    store.release("w")
    assert store.get("c").status == "queued" and store.get("c").attempts == 0


def test_pages_leave_out_what_explains_and_what_is_deleted(store):
    for k in range(5):
        add(store, f"v{k}")
    add(store, "e", EXPLANATION)
    store.delete("v1")
    first, more = store.page(None, 2, True)
    assert [job.id for job in first] == ["v4", "v3"] and more
    rest, more = store.page(first[-1], 2, True)
    assert [job.id for job in rest] == ["v2", "v0"] and not more
    assert [job.id for job in store.page(store.get("v0"), 9, False)[0]] == ["v2", "v3", "v4"]
    assert store.get("e").kind == EXPLANATION


def test_what_waits_is_counted_by_client(store):
    for k in range(3):
        add(store, f"v{k}", client="one" if k else "two")
    assert (store.waiting(), store.waiting("one"), store.waiting("two")) == (3, 2, 1)
    store.claim("w")
    assert (store.waiting(), store.waiting("two"), store.waiting("nobody")) == (2, 0, 0)


def test_a_deleted_job_goes_at_once_or_once_its_worker_lets_it_go(store):
    for name in "ab":
        add(store, name)
    job = store.claim("w")
    assert store.delete("a") and store.delete("b") and not store.delete("b")
    assert store.get("a") is None and not store.held(job) and not store.complete(job, {})
    assert store.place("a").exists() and not store.place("b").exists()
    store.forget(job)
    assert store.counts() == {} and not store.place("a").exists()


def test_a_job_that_is_anothers_now_keeps_its_files(store):
    add(store, "a")
    slow = store.claim("slow")
    store.recover("slow")
    other = store.claim("other")
    assert not store.held(slow) and store.held(other) and not store.complete(slow, {})
    store.forget(slow)
    assert store.place("a").exists() and store.complete(other, {})


def test_what_the_dead_had_in_hand_is_queued_again_and_given_up_in_the_end(store):
    add(store, "a")
    add(store, "gone")
    for k in range(ATTEMPTS):
        assert store.claim(f"w{k}").id == "a"
        store.recover(f"w{k}")
    assert store.get("a").error["code"] == "worker_died"
    store.claim("w")
    store.delete("gone")
    store.recover("another")
    assert store.place("gone").exists()
    store.recover("w")
    assert not store.place("gone").exists() and store.counts() == {"failed": 1}


def test_files_without_a_job_are_swept(store):
    add(store, "a")
    store.place("lost").mkdir()
    os.utime(store.place("lost"), (0, 0))
    store.sweep()
    assert store.place("a").exists() and not store.place("lost").exists()


def test_two_processes_share_a_redis_and_the_living_keep_their_jobs(redis, tmp_path, monkeypatch):
    monkeypatch.setattr(store_redis, "LEASE", 0.4)
    one, two = (RedisStore(tmp_path / "served", redis.url) for _ in range(2))
    for k in range(4):
        add(one, f"v{k}")
    one.alive("one")
    two.alive("two")
    claims = [one.claim("one"), two.claim("two")]
    assert [job.id for job in claims] == ["v0", "v1"]
    assert one.claim("one").id == "v0"  # its answer was lost: it is the same one, not a second
    assert one.get("v0").attempts == 1
    one.sweep()
    two.place("new").mkdir()  # a request of the other server is looked into
    one.sweep()
    assert two.place("new").exists()
    one.serves("toybox (1)")
    two.serves("toybox (1)")
    with pytest.raises(InputError, match=r"with toybox \(1\), not with other"):
        two.serves("other")
    one.close()  # as a kill would have it: nothing says any longer that it lives
    until = time.monotonic() + 10
    while two.get("v0").status != "queued" and time.monotonic() < until:
        time.sleep(0.05)
    assert two.get("v0").status == "queued" and two.get("v1").status == "in_progress"
    assert two.held(claims[1]) and not two.held(claims[0])
    with pytest.raises(InputError, match="in another folder"):
        monkeypatch.setattr(store_redis, "_SETTLE", 0.2)
        RedisStore(tmp_path / "elsewhere", redis.url)
    two._db.flushdb()
    two.close()


def test_no_job_is_claimed_twice_by_many_at_once(store):
    import threading

    for k in range(40):
        add(store, f"v{k:02}")
    made = []

    def work(name):
        while job := store.claim(name):
            made.append(job.id)
            assert store.complete(job, {})

    threads = [threading.Thread(target=work, args=(f"w{k}",)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(Counter(made).values()) == 1 and len(made) == 40


def test_a_redis_that_is_away_is_said_so(tmp_path):
    pytest.importorskip("redis")
    with pytest.raises(InputError, match=r"--queue redis://127.0.0.1:1/0: the queue does not"):
        RedisStore(tmp_path / "served", "redis://:secret@127.0.0.1:1/0")
    with pytest.raises(InputError, match="--waiting"):
        RedisStore(tmp_path / "served", "1000")


def test_a_redis_that_went_away_raises_unreachable(tmp_path):
    redis_server.needed()
    server = redis_server.Redis(tmp_path / "redis")
    store = RedisStore(tmp_path / "served", server.url)
    add(store, "a")
    server.kill()
    with pytest.raises(Unreachable):
        store.claim("w")
    server.start()
    assert store.claim("w").id == "a"  # it was written down before it was accepted
    server.stop()
