"""A server in the test's process."""

import threading
import time

import pytest
import uvicorn
from serving import Served


@pytest.fixture
def step_by_step(monkeypatch, fake_cascade):
    """The cascade that stands in for the networks has no chains to stop."""
    from mv2_jax.infer import generate
    from mv2_jax.infer.serve import maker

    monkeypatch.setattr(maker._StepByStep, "loaded", generate.Videos.loaded)


@pytest.fixture
def served(tmp_path, tiny_weights, step_by_step):
    return Served(tmp_path / "served", tiny_weights)


@pytest.fixture
def live(served):
    """The address of the server in a thread, with a worker in another."""
    config = uvicorn.Config(served.app, port=0, log_level="error")
    server = uvicorn.Server(config)
    stop = threading.Event()

    def work():
        while not stop.wait(0.02):
            served.work()

    threads = [threading.Thread(target=server.run), threading.Thread(target=work)]
    for thread in threads:
        thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    stop.set()
    for thread in threads:
        thread.join()
