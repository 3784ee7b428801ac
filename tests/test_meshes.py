"""On any mesh every network answers as on one device: cases drawn over meshes, sizes and kinds.

Kinds, meshes and sizes are in `meshes`. The bound is 1e-4 of a result's largest value. Measured:
networks 1e-6 at most, the VAE 5e-6, RIFE 6e-6, gradients of single parameters 3.2e-5.
XLA has to find a way for every array: "involuntary full rematerialization" fails.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import mesh_case
import meshes
import pytest
from quick import quick

from mv2_jax import sharding

BOUND = 1e-4
COUNT = len(meshes.KINDS)
STEP = 0.01  # of a network's parameters, the length that differences are taken over


def check(number, capfd):
    each = meshes.case(number)
    assert meshes.difference(each) < BOUND, str(each)
    assert "full rematerialization" not in capfd.readouterr().err


def named(numbers):
    return [pytest.param(n, id=str(meshes.case(n))) for n in numbers]


@pytest.mark.parametrize("number", named(range(24)))
def test_a_mesh_answers_as_one_device_does(number, capfd):
    check(number, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("number", named(range(24, 24 + COUNT)))  # each kind once
def test_more_meshes_answer_as_one_device_does(number, capfd):
    check(number, capfd)


@pytest.mark.long
@pytest.mark.parametrize("number", named(range(24 + COUNT, 288)))
def test_many_meshes_answer_as_one_device_does(number, capfd):
    check(number, capfd)


@pytest.mark.long
def test_twelve_devices_answer_as_one_does():
    """Their own process: this one has eight."""
    here = Path(__file__).parent
    places = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(here / "meshes.py"), "12", *map(str, range(COUNT))]
    environment = {**os.environ, "PYTHONPATH": places}
    environment.pop("XLA_FLAGS", None)
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert "full rematerialization" not in made.stderr, made.stderr
    found = [float(line.rpartition(" ")[2]) for line in made.stdout.splitlines()]
    assert len(found) == COUNT and max(found) < BOUND, made.stdout


@pytest.mark.slow
def test_pairs_of_a_batch_stay_where_its_samples_are(capfd):
    """A loss that doubles its batch, on samples over an axis that leaves others free."""
    case = mesh_case.Case("dpo-loss", (2, 2, 2, 1), 2, 1, (3, 5), 2, deep=False)
    # Optimising one device's program moves gradients by 9e-5.
    assert meshes.difference(case) < 3e-4
    assert "full rematerialization" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind, sizes", [("i2v-chain", (1, 2, 4, 1)), ("v2v-chain", (2, 1, 2, 2))])
def test_weights_by_frame_and_for_a_part_of_a_chain_hold_in_windows(kind, sizes, capfd):
    """Five frames, of which the network knows three, over axes that do not divide them."""
    case = mesh_case.Case(kind, sizes, 2, 5, (3, 5), 2, deep=True)
    assert meshes.difference(case) < BOUND
    assert "full rematerialization" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes, batch, frames, deep",
    [
        ((1, 2, 2, 2), 1, 3, False),  # clips that do not divide
        ((2, 1, 2, 2), 3, 5, True),  # and windows
    ],
)
def test_kept_features_stay_with_their_devices(sizes, batch, frames, deep, capfd):
    case = mesh_case.Case("cached-chain", sizes, batch, frames, (3, 5), 3, deep)
    assert meshes.difference(case) < BOUND
    assert "full rematerialization" not in capfd.readouterr().err


@pytest.mark.slow
def test_gradients_on_a_mesh_are_the_slopes_of_the_loss():
    """Along each network's gradient, by differences of the loss on one device."""
    case = mesh_case.Case("i2v-loss", (1, 2, 2, 2), 2, 3, (3, 5), 1, deep=False)
    run, params, args = meshes.MADE[case.kind](case)
    mesh = sharding.make_mesh(*case.sizes)
    with jax.set_mesh(mesh):
        _, gradient = jax.device_get(quick(run)(sharding.shard_params(params, mesh), *args))
    loss = quick(lambda params, *args: run(params, *args)[0])
    for name, tree in gradient.items():
        size = float(jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))))

        def moved(by, name=name, tree=tree, size=size):
            own = jax.tree.map(lambda p, g: p + by / size * g, params[name], tree)
            return float(loss({**params, name: own}, *args))

        far, near = ((moved(by) - moved(-by)) / (2 * by) for by in (STEP, STEP / 2))
        slope = near + (near - far) / 3  # Richardson's
        print(f"{name}: {slope / size - 1:.1e}")
        assert abs(slope / size - 1) < 2e-3, name


def test_the_default_cases_meet_every_kind_and_axis():
    cases = [meshes.case(number) for number in range(24)]
    assert {each.kind for each in cases} == set(meshes.DEFAULT)
    for axis in range(4):
        assert sum(each.sizes[axis] > 1 for each in cases) >= 8
    assert {each.batch for each in cases} == {1, 2, 3}
    assert {each.frames for each in cases} == {1, 2, 3, 5, 7, 8}
    assert {each.rows for each in cases} == {1, 2, 3}
