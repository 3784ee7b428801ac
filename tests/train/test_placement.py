import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.errors import InputError
from mv2_jax.train import loop
from mv2_jax.train.placement import Placement

from .regression import config, task

MESH = {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}


def attention(key):
    """Names that the sharding table knows."""
    a, b = jax.random.split(key)
    return {
        "attn1": {
            "to_q": {"kernel": 0.3 * jax.random.normal(a, (4, 8))},
            "to_out_0": {"kernel": 0.3 * jax.random.normal(b, (8, 4)), "bias": jnp.zeros(4)},
        }
    }


def loss(params, frozen, batch, key):
    layers = params["attn1"]
    y = jnp.tanh(batch["x"] @ layers["to_q"]["kernel"]) @ layers["to_out_0"]["kernel"]
    y = y + layers["to_out_0"]["bias"][None]
    return jnp.mean(jnp.square(y.sum(1, keepdims=True) - batch["y"])), {}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_mesh_trains_as_one_device_does(tmp_path, name):
    work = task(init=attention, loss=loss, frozen={})
    settings = {"steps": 6, "optim": {"lr": 0.01, "warmup": 0, "name": name}}
    alone = loop.run(work, config(**settings), tmp_path / "alone")
    spread = loop.run(work, config(**settings, mesh=MESH), tmp_path / "spread")
    kernel = spread.state.params["attn1"]["to_q"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 4)
    for a, b in zip(
        jax.tree.leaves(alone.state.ema), jax.tree.leaves(spread.state.ema), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("mesh", [{}, pytest.param(MESH, marks=pytest.mark.slow)])
def test_what_lies_in_host_memory_trains_and_resumes_alike(tmp_path, mesh):
    """Bit for bit; XLA's own program says where its arguments lie."""
    settings = {
        "mesh": mesh,
        "reports": (),
        "ema": {"also": (0.5,)},
        "optim": {"schedule": "constant"},
    }

    def shifted(params, frozen, batch, key):
        return loss(params, {}, {**batch, "y": batch["y"] + frozen["offset"]}, key)

    work = task(init=attention, loss=shifted)
    alone = loop.run(work, config(**settings, steps=4), tmp_path / "alone").state
    settings |= {"offload": ("optimizer", "averages", "frozen")}
    loop.run(work, config(**settings, steps=2), tmp_path / "away")
    run = loop.Run(work, config(**settings, steps=4), tmp_path / "away", True, time.monotonic,
                   loop.Stop())  # fmt: skip
    state = run.go().state
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    (program, _), *_ = run.programs.compiled.values()
    before, after = program.input_shardings[0], program.output_shardings
    for found in (before[0], after[0], state):
        found = jax.tree.map(lambda x: getattr(x, "sharding", x).memory_kind, found)
        for name in ("opt", "ema", "others"):
            assert {*jax.tree.leaves(getattr(found, name))} == {"pinned_host"}, name
        assert {*jax.tree.leaves((found.params, found.step))} == {"device"}
    assert before[1]["offset"].memory_kind == "pinned_host"


def test_a_word_that_is_nothing_to_offload_is_refused():
    with pytest.raises(InputError, match="did you mean 'optimizer'"):
        Placement({}, (), ("optimiser",))


def test_a_sharded_state_resumes_where_it_lay(tmp_path):
    work = task(init=attention, loss=loss, frozen={})
    loop.run(work, config(steps=3, mesh=MESH), tmp_path)
    further = loop.run(work, config(steps=6, mesh=MESH), tmp_path)
    kernel = further.state.params["attn1"]["to_q"]["kernel"]
    assert int(further.state.step) == 6
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 4)


@pytest.mark.parametrize(
    "sizes, says",
    [({"dat": 8}, "did you mean 'data'"), ({"data": 3}, "needs 3 devices; there are 8")],
)
def test_meshes_that_cannot_be(sizes, says):
    with pytest.raises(InputError, match=says):
        Placement(sizes)
