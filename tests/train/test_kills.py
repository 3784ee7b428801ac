"""Training killed with signal 9 at random moments, during saves too, ends with the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Children are forked from a process that has imported everything and asked JAX for no device yet:
# a start then takes a second.
WORKER = """
import json, os, pathlib, random, signal, sys, time
import jax, numpy as np, optax, orbax.checkpoint
from mv2_jax import params
from mv2_jax.train import loop
from regression import config, task

folder, kills, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
cfg = config(steps=12, log_every=6, checkpoint_minutes=1e-9, sample_minutes=0.0)

def begin(place):
    child = os.fork()
    if not child:
        place.mkdir(exist_ok=True)
        out = os.open(place / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1), os.dup2(out, 2)
        state = loop.run(task(), cfg, place).state
        held = {"params": state.params, "ema": state.ema}
        np.savez(place / "end.npz", **params.flatten(held))
        os._exit(0)
    return child

def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def reached(place, step):
    names = [p.name.partition(".")[0] for p in (place / "checkpoints").glob("*")]
    return max((int(name) for name in names), default=-1) >= step

assert end(begin(folder / "whole")) == 0, (folder / "whole" / "said.txt").read_text()
wanted, rng, told = dict(np.load(folder / "whole" / "end.npz")), random.Random(seed), []
for number in range(kills):
    place = folder / str(number)
    child = begin(place)
    step = rng.randrange(-1, 9)  # -1: while it starts
    while not reached(place, step) and not (place / "end.npz").exists():
        time.sleep(0.01)
    time.sleep(rng.uniform(0.0, 0.25))
    os.kill(child, signal.SIGKILL)
    code = end(child)
    steps = [p.name for p in (place / "checkpoints").glob("*")]
    assert end(begin(place)) == 0, (place / "said.txt").read_text()
    found = dict(np.load(place / "end.npz"))
    same = all(np.array_equal(found[name], wanted[name]) for name in wanted)
    left = [p.name for p in (place / "checkpoints").glob("*tmp*")]
    resumed = "resumed at step" in (place / "said.txt").read_text()
    told.append({"killed": code == -9, "same": same, "left": left, "resumed": resumed,
                 "saving": any("tmp" in name for name in steps), "steps": sorted(steps)})
print(json.dumps(told))
"""


def killed(folder, kills, seed=0):
    """What became of runs that were each killed once."""
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join((str(here), str(here.parents[1]))),
    }
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(folder), str(kills), str(seed)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    print(*told, sep="\n")
    return told


def check(told):
    assert all(run["same"] and not run["left"] for run in told), told
    assert all(run["killed"] for run in told), told
    assert any(run["resumed"] for run in told)


@pytest.mark.slow
def test_three_kills(tmp_path):
    check(killed(tmp_path, 3))


@pytest.mark.long
def test_twenty_kills(tmp_path):
    told = killed(tmp_path, 20, seed=1)
    check(told)
    assert sum(run["saving"] for run in told) >= 5, "too few while a checkpoint was written"
