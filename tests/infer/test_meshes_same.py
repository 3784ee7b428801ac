"""A seed gives the same video on one device, on a mesh of eight, and on two processes of four.

    pytest -m slow tests/infer/test_meshes_same.py

Each is `mv2 generate` in processes of its own, over the tiny cascade, CPU devices emulated.
Measured: at most 1 of 255 levels, in fewer than one sample of a hundred.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

ROOT = Path(__file__).parents[2]

WORKER = """
import sys
import numpy as np
from mv2_jax import cli
from mv2_jax.infer import outputs

write = outputs.write

def keep(planned, frames, *rest):
    np.save(planned.video.with_suffix(".npy"), frames)
    write(planned, frames, *rest)

outputs.write = keep
sys.exit(cli.main(sys.argv[1:]))
"""


def start(folder, devices, *arguments, **variables):
    """`mv2 generate` of two prompts in a folder of its own, as out-1.mp4 and out-2.mp4."""
    folder.mkdir()
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "XDG_CACHE_HOME": str(folder.parent / "cache"),
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    prompts = ["a red ball", "a blue cube"]
    command = [sys.executable, "-c", WORKER, "generate", *prompts, "--batch", "2", "-o", "out.mp4"]
    return subprocess.Popen(
        [*command, "--weights", str(folder.parent / "weights"), *arguments],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    try:
        said = [process.communicate(timeout=900)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said


@pytest.mark.slow
def test_a_seed_gives_one_video_on_any_devices(tmp_path):
    tiny.write(tmp_path / "weights", tiny.make())
    (said,) = finish(start(tmp_path / "one", 1))
    assert "on 1 cpu device\n" in said
    mesh = ("--mesh", "data=2,context=4")
    (said,) = finish(start(tmp_path / "eight", 8, *mesh))
    assert "on 8 cpu devices, data 2 x context 4\n" in said
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    first, second = finish(
        *(
            start(tmp_path / f"four{number}", 4, *mesh, **place, JAX_PROCESS_ID=str(number))
            for number in range(2)
        )
    )
    assert "on 8 cpu devices in 2 processes, data 2 x context 4\n" in first
    assert "out-1.mp4: 3 frames" in first and "out-1.mp4" not in second
    assert not list((tmp_path / "four1").iterdir())  # the first process alone writes
    for name in ("out-1", "out-2"):
        alone = np.load(tmp_path / "one" / f"{name}.npy").astype(int)
        assert alone.std() > 10
        for folder in ("eight", "four0"):
            apart = np.abs(np.load(tmp_path / folder / f"{name}.npy") - alone)
            assert apart.max() <= 1 and (apart > 0).mean() < 0.01, (folder, apart.max())
            made_with = json.loads((tmp_path / folder / f"{name}.json").read_text())["made_with"]
            assert made_with["mesh"] == "data=2,context=4"
