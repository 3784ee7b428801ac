"""The server's processes killed, loaded and fuzzed; and one whole run on networks."""

import collections
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import redis_server
import schemathesis
import serving
import tiny
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi import checks as openapi_checks

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
PROMPT = "a red ball bouncing over the meadow"


class Running:
    """A server in processes of its own (tests/serving.py)."""

    def __init__(self, folder, weights, seconds, queue=(), name=""):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.command = [
            sys.executable, serving.__file__, "server", str(folder), str(weights), str(port),
            str(seconds), *queue,
        ]  # fmt: skip
        self.log, self.folder = open(folder.with_name(f"server{name}.log"), "wb"), folder
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        self.ready()

    def ready(self):
        """Waits for a worker that works."""
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            with contextlib.suppress(httpx.HTTPError):
                if self.client.get("/health").status_code == 200:
                    return
            time.sleep(0.05)
        raise TimeoutError(Path(self.log.name).read_text())

    @property
    def worker(self):
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task").glob("*/children")
        return int(next(text for path in children if (text := path.read_text())).split()[0])

    def jobs(self):
        """{id: video} of all there are."""
        found, after = {}, ""
        while True:
            page = self.client.get(f"/v1/videos?limit=100{after}").json()
            found |= {video["id"]: video for video in page["data"]}
            if not page["has_more"]:
                return found
            after = f"&after={page['last_id']}"

    def done(self, seconds):
        """All jobs, once none waits or runs."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            found = self.jobs()
            if all(video["status"] in ("completed", "failed") for video in found.values()):
                return found
            time.sleep(0.2)
        raise TimeoutError(collections.Counter(video["status"] for video in found.values()))

    def made(self):
        """How often each file was made, by id."""
        path = self.folder / "made.txt"
        return collections.Counter(path.read_text().split() if path.exists() else ())

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self.client.close()
        self.log.close()
        return code


@pytest.fixture
def running(tmp_path, tiny_weights):
    begun = []

    def start(seconds, *queue):
        name = str(len(begun))
        begun.append(Running(tmp_path / "served", tiny_weights, seconds, queue, name))
        return begun[-1]

    yield start
    for server in begun:
        if server.process.poll() is None:
            server.stop()


@contextlib.contextmanager
def asking(servers, count, chance):
    """The names of `count` jobs that some of the servers has accepted, once the block has ended."""
    accepted, over = [], threading.Event()

    def ask():
        while len(accepted) < count and not over.is_set():
            try:
                address = chance.choice(servers).client.base_url
                answer = httpx.post(f"{address}/v1/videos", json={"prompt": PROMPT}, timeout=30)
                if answer.status_code == 200:
                    accepted.append(answer.json()["id"])
            except httpx.HTTPError:
                time.sleep(0.05)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield accepted
        thread.join(120)
    finally:
        over.set()
        thread.join(40)


def each_was_made_once(servers, accepted, count):
    """Waits for the jobs; any of the servers answers for all of them."""
    found = servers[0].done(300)
    assert len(accepted) == count
    assert {found[name]["status"] for name in accepted} == {"completed"}
    for name in accepted:
        assert servers[-1].client.get(f"/v1/videos/{name}/content").content == name.encode()
    assert max(servers[0].made().values()) == 1
    assert {server.stop() for server in servers} == {0}


@linux
@pytest.mark.parametrize("kills, count", [
    pytest.param(5, 20, marks=pytest.mark.slow), pytest.param(50, 200, marks=pytest.mark.long),
])  # fmt: skip
def test_no_accepted_job_is_lost_or_made_twice_by_kills(running, kills, count):
    server, chance = running(0.2), random.Random(kills)
    with asking([server], count, random.Random(count)) as accepted:
        for k in range(kills):
            server.ready()
            time.sleep(chance.uniform(0.0, 0.5))
            if k % 2:
                os.kill(server.worker, signal.SIGKILL)
            else:
                server.process.kill()
                server.process.wait()
                server.start()
    each_was_made_once([server], accepted, count)


@linux
@pytest.mark.parametrize("kills, count", [
    pytest.param(4, 20, marks=pytest.mark.slow), pytest.param(50, 200, marks=pytest.mark.long),
])  # fmt: skip
def test_servers_of_one_queue_lose_and_make_twice_no_job_by_kills(
    running, tmp_path, request, kills, count
):
    """Workers, servers, both at once as if their machine were gone, and Redis itself."""
    redis_server.needed()
    redis, chance = redis_server.Redis(tmp_path / "redis"), random.Random(kills)
    request.addfinalizer(redis.stop)
    servers = [running(0.2, redis.url) for _ in range(2)]
    with asking(servers, count, random.Random(count)) as accepted:
        for k in range(kills):
            server = servers[k // 4 % 2]
            server.ready()
            time.sleep(chance.uniform(0.0, 0.5))
            what = ("worker", "server", "both", "redis")[k % 4]
            if what in ("worker", "both"):
                os.kill(server.worker, signal.SIGKILL)
            if what in ("server", "both"):
                server.process.kill()
                server.process.wait()
                server.start()
            if what == "redis":
                redis.kill()
                redis.start()
    each_was_made_once(servers, accepted, count)


@linux
@pytest.mark.slow
def test_a_job_that_takes_its_worker_down_fails_and_the_others_go_on(running):
    server = running(0.01)
    names = [
        server.client.post("/v1/videos", json={"prompt": prompt}).json()["id"]
        for prompt in (serving.DEADLY, PROMPT)
    ]
    found = server.done(120)
    assert [found[name]["status"] for name in names] == ["failed", "completed"]
    assert found[names[0]]["error"]["code"] == "worker_died"
    told = server.client.get("/health").json()
    assert told["status"] == "ok"


@linux
@pytest.mark.parametrize("clients, requests", [
    pytest.param(10, 50, marks=pytest.mark.slow), pytest.param(50, 500, marks=pytest.mark.long),
])  # fmt: skip
def test_load(running, clients, requests):
    server = running(0.01)

    def memory():
        pids = (server.process.pid, server.worker)
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * 4096

    def one(_):
        began = time.monotonic()
        answer = server.client.post("/v1/videos", json={"prompt": PROMPT})
        seconds = time.monotonic() - began
        assert answer.status_code == 200
        return answer.json()["id"], seconds

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(clients)))
        server.done(120)
        before = memory()
        names, seconds = zip(*pool.map(one, range(requests)))
    found = server.done(300)
    assert {found[name]["status"] for name in names} == {"completed"}
    shown = np.percentile(seconds, [50, 95, 99])
    print("seconds to accept: median {:.3f}, 95% {:.3f}, 99% {:.3f}".format(*shown))
    grown = memory() - before
    print(f"memory grew by {grown / 2**20:.1f} MiB in {requests} jobs")
    assert grown < 32 << 20


@pytest.fixture
def api(served):
    """The description, and a worker for what is asked."""
    stop = threading.Event()

    def work():
        while not stop.wait(0.02):
            served.work()

    thread = threading.Thread(target=work)
    thread.start()
    yield schemathesis.openapi.from_asgi("/openapi.json", served.app, headers={
        "Host": "127.0.0.1"})  # fmt: skip
    stop.set()
    thread.join()


CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]


@pytest.mark.slow
@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
def test_every_answer_is_described_and_none_is_the_servers_fault(api, mode):
    seen = set()
    for operation in (result.ok() for result in api.get_all_operations()):
        if mode.is_negative and not (operation.body or operation.query):
            continue  # nothing can be wrong with it

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck),
                  derandomize=True, database=None)  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def answers(case):
            if mode.is_positive and isinstance(case.body, dict) and "prompt" in case.body:
                few = [item for item in case.body.items() if item[0] != "model"][:3]
                case.body = {**dict(few), "prompt": PROMPT}  # else hardly one is accepted
            told = case.call_and_validate(headers={"Host": "127.0.0.1"}, checks=CHECKS)
            seen.add((case.operation.label, told.status_code))

        answers()
    assert ("POST /v1/videos", 200 if mode.is_positive else 400) in seen


@linux
@pytest.mark.slow
def test_a_restart_compiles_nothing_and_makes_the_same(tmp_path):
    tiny.write(tmp_path / "tiny", tiny.make())
    own = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
    }
    env = {**{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}, **own}
    command = [sys.executable, "-m", "mv2_jax", "serve", "--weights", "tiny", "--port", "0"]
    said, results = [], []
    for _ in range(2):
        with open(tmp_path / "log", "w+") as log:
            process = subprocess.Popen(
                command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=log, text=True
            )
            try:
                address = process.stdout.readline().split(" at ")[1].split(";")[0]
                asked = {"prompt": PROMPT, "seed": 7}
                video = httpx.post(f"{address}/videos/sync", json=asked, timeout=60)
                path = f"{address}/videos/{video.headers['x-video-id']}/content?variant=sidecar"
                results.append(httpx.get(path).json()["result"])
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0
            finally:
                process.kill()
                process.wait()
            log.seek(0)
            said.append(log.read())
    assert "compiling" in said[0] and "compiling" not in said[1]
    assert results[0] == results[1] and results[0]["frames"] == 3
