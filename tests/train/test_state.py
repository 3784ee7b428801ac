import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import sharding
from mv2_jax.train import optim
from mv2_jax.train.checkpoint import Checkpoints
from mv2_jax.train.state import create, make_step

from .regression import config, task


def state_of(cfg):
    return create(task().init(jax.random.key(0)), optim.transformation(cfg.optim))


def test_the_parts_of_a_batch_stay_where_their_rows_lie():
    cfg = config(optim={"accumulate": 4})
    mesh = sharding.make_mesh(data=8)

    work = task()
    step = make_step(work, optim.transformation(cfg.optim), cfg)
    x = np.random.default_rng(0).random((64, 4), np.float32)
    batch = {"x": x, "y": x.sum(1, keepdims=True)}
    rest = (jax.random.key(1), jnp.float32(0.1))
    alone, _ = jax.jit(step)(state_of(cfg), work.frozen, batch, *rest)
    with jax.set_mesh(mesh):
        placed = sharding.shard_batch(batch, mesh)
        program = jax.jit(step).lower(state_of(cfg), work.frozen, placed, *rest).compile()
        spread, _ = program(state_of(cfg), work.frozen, placed, *rest)
    text = program.as_text()
    assert not [word for word in ("all-gather", "all-to-all", "permute(") if word in text]
    for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(spread.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_restoring_gives_up_the_state_it_is_modelled_on(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(1, state_of(config()), {"elapsed": 0.0, "flop": 0.0})
    like = state_of(config())
    restored, _ = kept.restore(like)
    kept.close()
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(like))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(restored))
