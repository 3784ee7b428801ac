"""A seed gives the same video on one device, on a mesh of eight, and on two processes of four.

    pytest -m slow tests/infer/test_meshes_same.py    # the tiny cascade
    pytest -m long tests/infer/test_meshes_same.py    # the shipped one, on one device and on two

Each is `mv2 generate` in processes of its own, CPU devices emulated. Measured on the shipped one
(T2I in 4 steps): 88 of 4,325,376 samples differ, by one of 255 levels.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from mv2_jax import cascade, cli, sharding
from mv2_jax.infer import explain_maps, generate

ROOT = Path(__file__).parents[2]

WORKER = """
import atexit, sys
import jax
import numpy as np
from mv2_jax import cli
from mv2_jax.infer import outputs

compiled = []
jax.monitoring.register_event_listener(
    lambda event, **_: event.endswith("cache_misses") and compiled.append(event)
)
atexit.register(lambda: print(f"compiled {len(compiled)} programs", flush=True))

write = outputs.write

def keep(planned, frames, *rest):
    np.save(planned.video.with_suffix(".npy"), frames)
    write(planned, frames, *rest)

outputs.write = keep
sys.exit(cli.main(sys.argv[1:]))
"""


TWO = ("a red ball", "a blue cube", "--batch", "2")


def start(folder, devices, *arguments, **variables):
    """`mv2 generate` in a folder of its own, to out.mp4, or out-1.mp4 and out-2.mp4."""
    folder.mkdir(parents=True)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "XDG_CACHE_HOME": str(folder.parent / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    environment |= variables
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, "generate", "-o", "out.mp4", *arguments],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def two_processes(folder, *arguments, **variables):
    """The same as two processes of four devices each, in folders four0 and four1."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", **variables}
    return [
        start(folder / f"four{number}", 4, *arguments, **place, JAX_PROCESS_ID=str(number))
        for number in range(2)
    ]


def finish(*processes, code=0):
    try:
        said = [process.communicate(timeout=900)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [code] * len(processes), "\n".join(said)
    return said


def alike(one, other, share):
    """Demands that at most this share of two videos' samples differ, and by one level."""
    alone, apart = np.load(one), np.abs(np.load(other).astype(int) - np.load(one))
    assert alone.std() > 10
    assert apart.max() <= 1 and (apart > 0).mean() < share, (apart.max(), (apart > 0).mean())


@pytest.mark.slow
def test_a_seed_gives_one_video_on_any_devices(tmp_path):
    tiny.write(tmp_path / "weights", tiny.make())
    asked = (*TWO, "--weights", str(tmp_path / "weights"))
    (said,) = finish(start(tmp_path / "one", 1, *asked))
    assert "on 1 cpu device\n" in said
    asked = (*asked, "--mesh", "data=2,context=4")
    (said,) = finish(start(tmp_path / "eight", 8, *asked))
    assert "on 8 cpu devices, data 2 x context 4\n" in said
    first, second = finish(*two_processes(tmp_path, *asked))
    assert "on 8 cpu devices in 2 processes, data 2 x context 4\n" in first
    assert "out-1.mp4: 3 frames" in first and "out-1.mp4" not in second
    assert not list((tmp_path / "four1").iterdir())  # the first process alone writes
    for name in ("out-1", "out-2"):
        for folder in ("eight", "four0"):
            alike(tmp_path / "one" / f"{name}.npy", tmp_path / folder / f"{name}.npy", 0.01)
            made_with = json.loads((tmp_path / folder / f"{name}.json").read_text())["made_with"]
            assert made_with["mesh"] == "data=2,context=4"


@pytest.mark.slow
def test_a_second_start_with_weights_and_programs_in_a_bucket_compiles_nothing(tmp_path):
    tiny.write(tmp_path / "weights", tiny.make())
    asked = (*TWO, "--weights", f"file://{tmp_path}/weights", "--mesh", "fsdp=2,context=4")
    cache = {"JAX_COMPILATION_CACHE_DIR": f"file://{tmp_path}/programs"}
    first = finish(*two_processes(tmp_path / "first", *asked, **cache))
    again = finish(*two_processes(tmp_path / "again", *asked, **cache))
    assert "compiling (once)" in first[0] and "compiled 0 programs" not in first[0]
    assert "compiling" not in again[0]
    assert ["compiled 0 programs" in said for said in again] == [True, True], again
    for name in ("out-1.npy", "out-2.npy"):
        made = [np.load(tmp_path / which / "four0" / name) for which in ("first", "again")]
        np.testing.assert_array_equal(*made)
    # Together they make the lines of a file, and agree on what of it is wrong.
    (tmp_path / "lines").write_text('a red ball\na blue cube\n{"image": "none.png"}\n')
    many = ("--prompts", str(tmp_path / "lines"), *asked[len(TWO) - 2 :])
    said = finish(*two_processes(tmp_path / "many", *many, **cache), code=1)
    assert "2 videos made in" in said[0] and "line 3" in said[0] and "line 3" not in said[1]
    assert all("compiled 0 programs" in text for text in said)
    assert not list((tmp_path / "many" / "four1").iterdir())
    for k in (1, 2):
        made = tmp_path / "many" / "four0" / "out.mp4" / f"0000{k}.npy"
        np.testing.assert_array_equal(np.load(made), np.load(tmp_path / f"first/four0/out-{k}.npy"))


@pytest.mark.slow
def test_what_one_process_refuses_stops_both(tmp_path):
    tiny.write(tmp_path / "weights", tiny.make())
    weights = ("--weights", str(tmp_path / "weights"))
    asked = ("a red ball", *weights, "--mesh", "context=8", "-o", "four0/out.mp4")
    first, second = finish(*two_processes(tmp_path, *asked), code=2)
    assert "mv2: error: cannot write four0/out.mp4" in first
    assert "mv2: error: process 0 was refused; it says why" in second


@pytest.mark.long
def test_the_shipped_cascade_makes_one_video_on_one_device_and_on_two(tmp_path):
    asked = ("a red ball bouncing over a meadow", "--t2i-steps", "4")
    optimised = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    finish(start(tmp_path / "one", 1, *asked, **optimised))
    finish(start(tmp_path / "two", 2, *asked, "--mesh", "context=2", **optimised))
    alike(tmp_path / "one" / "out.npy", tmp_path / "two" / "out.npy", 1e-3)


@pytest.fixture
def quickly():
    """Programs that run once are compiled without most of XLA's work."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
def test_words_look_at_the_same_places_on_a_mesh(tmp_path, quickly):
    folder = tiny.write(tmp_path / "weights", tiny.make())
    numbers = {"steps": 2, "guidance": 4.0}
    mesh = sharding.make_mesh(fsdp=2, context=2, tensor=2)
    alone, spread = (
        explain_maps.of_picture(cascade.load(folder, mesh=m), "a red ball", 3, numbers)
        for m in (None, mesh)
    )
    assert alone.text.std() > 1e-3
    np.testing.assert_allclose(spread.text, alone.text, atol=1e-4)
    np.testing.assert_allclose(spread.believed, alone.believed, atol=1e-4)


@pytest.fixture
def uncached(tmp_path, monkeypatch):
    """A folder to work in with weights; programs are kept for the tests alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate.cache, "enable", lambda: None)
    tiny.write(tmp_path / "weights", tiny.make())
    return tmp_path


@pytest.mark.slow
def test_explain_runs_on_a_mesh(uncached, quickly, capsys):
    assert cli.main(["explain", "a red ball", "--weights", "weights", "--mesh", "context=8"]) == 0
    assert "on 8 cpu devices, context 8" in capsys.readouterr().err
    assert "mesh context=8" in (uncached / "explain.html").read_text()


@pytest.mark.slow
def test_eval_and_study_run_on_a_mesh(uncached, quickly, capsys):
    mesh = ("--weights", "weights", "--prompts", "2", "--batch", "2", "--mesh", "data=2,context=4")
    assert cli.main(["eval", "toybox", "-o", "judged", *mesh]) == 0
    said = capsys.readouterr()
    assert "on 8 cpu devices, data 2 x context 4" in said.err and "video, both" in said.out
    assert len(json.loads((uncached / "judged" / "eval.json").read_text())["prompts"]) == 2
    assert cli.main(["study", "inference", "--only", "prior", "-o", "study", *mesh]) == 0
    assert "on 8 cpu devices, data 2 x context 4" in capsys.readouterr().err
    assert (uncached / "study" / "study.md").stat().st_size > 100
    assert len(json.loads((uncached / "study" / "study.json").read_text())) > 0
