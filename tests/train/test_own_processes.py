"""Two processes that read their own rows of one's own clips train as one that reads all."""

import json
import os
import socket
import subprocess
import sys

import media_clips
import numpy as np
import pytest

WATCH = """
import sys
from mv2_jax.train.media import source
from mv2_jax.cli import main
made, load = [], source.Media.load

def counted(self, plan, kind, key, pick):
    made.append(pick.number)
    return load(self, plan, kind, key, pick)

source.Media.load = counted
code = main(sys.argv[1:])
print("READ", len(made), flush=True)
sys.exit(code)
"""


def start(given, out, devices, **variables):
    cascade, clips = given
    settings = {
        "cascade": cascade, "data.root": clips, "mesh.data": 2, "batch": 4, "steps": 6,
        "log_every": 1, "sample.steps": 1, "remat": False, "data.ahead": 1, "data.threads": 1,
    }  # fmt: skip
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "XDG_CACHE_HOME": str(out.parent / "cache"),
        **variables,
    }
    command = [sys.executable, "-c", WATCH, "train", "own/i2v", "--out", str(out), "--set"]
    return subprocess.Popen(
        [*command, *(f"{name}={value}" for name, value in settings.items())],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def losses(out):
    path = out / "own/i2v/i2v/metrics.jsonl"
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_on_files_as_one_does(tmp_path):
    given = media_clips.cascade(tmp_path / "cascade"), media_clips.clips(tmp_path / "clips", 5, 0)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    started = [
        start(given, tmp_path / "one", 2),
        *(start(given, tmp_path / "two", 1, **place, JAX_PROCESS_ID=str(n)) for n in range(2)),
    ]
    try:
        said = [process.communicate(timeout=900)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0, 0], "\n".join(said)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 6
    np.testing.assert_allclose(one, two, rtol=1e-4)
    # Each reads half of what the one reads: what it trains on, and a little ahead.
    alone, *shares = (int(text.split("READ ")[1].split()[0]) for text in said)
    assert alone >= 24 and all(12 <= share <= alone // 2 + 4 for share in shares)
