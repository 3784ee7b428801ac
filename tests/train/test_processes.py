"""Two processes of two CPU devices train what one process of four does."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mv2_jax.errors import InputError
from mv2_jax.train import processes
from mv2_jax.train.latents import Shards

STEPS = 24

WORKER = """
import os, pathlib, signal, sys
import jax, jax.numpy as jnp, numpy as np
from mv2_jax import params
from mv2_jax.train import loop, processes
from regression import batches, config, task

processes.initialise()
processes.initialise()
folder = pathlib.Path(sys.argv[1])
several = jax.process_count() > 1

def init(key):
    a, b = jax.random.split(key)
    out = {"kernel": 0.3 * jax.random.normal(b, (8, 4)), "bias": jnp.zeros(4)}
    return {"attn1": {"to_q": {"kernel": 0.3 * jax.random.normal(a, (4, 8))}, "to_out_0": out}}

def loss(params, frozen, batch, key):
    layers = params["attn1"]
    y = jnp.tanh(batch["x"] @ layers["to_q"]["kernel"]) @ layers["to_out_0"]["kernel"]
    y = y + layers["to_out_0"]["bias"][None]
    return jnp.mean(jnp.square(y.sum(1, keepdims=True) - batch["y"])), {}

def cut(seed, start):
    for number, batch in enumerate(batches(seed, start)):
        if number == 3 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch

def train(mesh, **changes):
    settings = {"steps": STEPS, "log_every": 1, "optim": {"lr": 0.01, "accumulate": 2}}
    work = task(init=init, loss=loss, frozen={}, **changes)
    return loop.run(work, config(**settings, mesh=mesh), folder)

if several:
    first = train({"data": 2, "fsdp": 2}, batches=cut)
    assert not first.finished and 0 < int(first.state.step) < STEPS, first
    if sys.argv[2:]:
        processes.wait("done")
        sys.exit()
last = train({"fsdp": 4} if several else {"data": 2, "fsdp": 2})
assert last.finished
kernel = last.state.params["attn1"]["to_q"]["kernel"]
assert kernel.is_fully_addressable != several
np.savez(folder / f"weights{jax.process_index()}.npz", **params.flatten(loop.averages(last)[0]))
processes.wait("done")
"""


def start(folder, devices, *arguments, code=WORKER, **variables):
    folder.mkdir(exist_ok=True)
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), str(root))),
        **variables,
    }
    code = code.replace("STEPS", str(STEPS))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *arguments],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_as_one_does_and_stop_together(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    one, two = tmp_path / "one", tmp_path / "two"
    place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    started = [
        start(one, 4),
        *(start(two, 2, **place, JAX_PROCESS_ID=str(number)) for number in range(2)),
    ]
    try:
        said = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0, 0], "\n".join(said)
    assert "resumed at step" in said[1] and "resumed at step" not in said[2]
    assert [row["step"] for row in rows(two)] == list(range(1, STEPS + 1))
    losses = [[row["loss"] for row in rows(folder)] for folder in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    alone = np.load(one / "weights0.npz")
    for number in range(2):
        together = np.load(two / f"weights{number}.npz")
        for name in alone.files:
            np.testing.assert_allclose(together[name], alone[name], atol=1e-5)


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    one, two = tmp_path / "one", tmp_path / "two"
    place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    pair = [start(two, 2, "cut", **place, JAX_PROCESS_ID=str(number)) for number in range(2)]
    said = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    alone = [start(one, 4), start(two, 4)]
    said = [process.communicate(timeout=300)[0] for process in alone]
    assert [process.returncode for process in alone] == [0, 0] and "resumed" in said[1], said
    losses = [[row["loss"] for row in rows(folder)] for folder in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-4)  # of the same samples in the same order
    whole, cut = (np.load(folder / "weights0.npz") for folder in (one, two))
    for name in whole.files:
        np.testing.assert_allclose(cut[name], whole[name], atol=1e-5)


LONELY = """
import os, pathlib, sys, time
import jax
from mv2_jax.errors import InputError
from mv2_jax.train import loop, processes
from regression import batches, config, task

processes.BEAT, processes.LOST = 0.5, float(sys.argv[2])
processes.initialise()

def endless(seed, start):
    for number, batch in enumerate(batches(seed, start)):
        time.sleep(0.05)
        if number == 12 and sys.argv[3] == str(jax.process_index()):
            raise InputError("no data today")
        yield batch

try:
    with processes.together():
        work = task(batches=endless, rules=((r"/layer/|offset", ()),))
        cfg = config(steps=10_000, log_every=5, mesh={"data": 2}, sample_minutes=0.0)
        loop.run(work, cfg, pathlib.Path(sys.argv[1]))
except InputError as error:
    print("told", error, flush=True)
    sys.exit(2)
"""


def test_they_end_within_half_a_minute():
    assert processes.LOST + 5 * processes.BEAT < 30


def lost(*values, mark=pytest.mark.slow):
    return pytest.param(*values, marks=mark)


@pytest.mark.parametrize(
    "victim, how, says",
    [
        lost(1, signal.SIGKILL, "process 1 has given no sign of life"),
        lost(0, signal.SIGKILL, "process 0 is lost"),
        lost(0, signal.SIGSTOP, "process 0 has not answered", mark=pytest.mark.long),
        lost(1, None, "process 1 failed: InputError: no data today", mark=pytest.mark.long),
        lost(0, None, "process 0 failed: InputError: no data today"),
    ],
)
def test_none_waits_for_one_that_is_lost(tmp_path, victim, how, says):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    arguments = ("4.0", "" if how else str(victim))
    pair = [
        start(tmp_path, 1, *arguments, code=LONELY, **place, JAX_PROCESS_ID=str(number))
        for number in range(2)
    ]
    other = pair[1 - victim]
    try:
        if how:
            lines = []
            while not lines or ("] 10/" not in lines[-1] and lines[-1]):
                lines.append(pair[0].stdout.readline())
            assert lines[-1], "".join(lines)
            pair[victim].send_signal(how)
        said = other.communicate(timeout=60)[0]
        last = [line for line in said.splitlines() if line.startswith("mv2:")]
        assert other.returncode == 1 and len(last) == 1 and says in last[0], said
        if not how:
            told = pair[victim].communicate(timeout=60)[0]
            assert pair[victim].returncode == 2 and "told no data today" in told
            assert "Check failure" not in told
    finally:
        for process in pair:
            process.kill()
            process.communicate()


def test_a_process_alone_joins_nobody(monkeypatch):
    for name in (*processes.LAUNCHERS, "JAX_COORDINATOR_ADDRESS", "TPU_ML_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    processes.initialise()
    assert not jax.distributed.is_initialized() and processes.first()


def test_a_coordinator_without_numbers_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setattr(jax.distributed, "initialize", _unnumbered)
    with pytest.raises(InputError, match="set JAX_NUM_PROCESSES, and JAX_PROCESS_ID"):
        processes.initialise()


def _unnumbered(**_):
    raise ValueError("Number of processes must be defined.")


def test_the_first_process_alone_keeps_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "first", lambda: False)
    shards = Shards(tmp_path / "latents", {}, lambda numbers: {"n": 2 * numbers}, 4, 2)
    np.testing.assert_array_equal(shards.take(np.array([3, 0]))["n"], [6, 0])
    assert not list(tmp_path.iterdir())


class Others:
    """In place of `process_allgather`: this process's words, then those of one that says stop."""

    def __init__(self):
        self.asked, self.stop = 0, False

    def __call__(self, mine):
        self.asked += 1
        return np.float32([mine, [1e6, self.stop]])


def test_processes_compare_about_once_a_second_by_the_first_ones_clock(monkeypatch):
    others, now = Others(), [0.0]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", others)
    watch = processes.Watch(lambda: now[0], lambda: False)
    for _ in range(400):  # ten steps a second
        now[0] += 0.1
        watch.tick()
    assert 35 <= others.asked <= 50
    assert 38 <= watch.seconds <= 40.1 and not watch.stop
    others.stop = True
    for _ in range(20):
        watch.tick()
    assert watch.stop
