import ast
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.diffusion import keys


def data(key):
    return np.asarray(jax.random.key_data(key))


def test_names_hash_to_the_same_number_for_ever():
    assert keys.word("noise") == 0x54127836
    assert keys.word("timestep") != keys.word("noise")


def test_purposes_are_independent_and_repeatable():
    key = keys.seed(7)
    assert (data(keys.fold(key, "noise")) == data(keys.fold(key, "noise"))).all()
    assert (data(keys.fold(key, "noise")) != data(keys.fold(key, "drop_text"))).any()
    folded = jax.jit(lambda i: keys.fold(key, i))(jnp.int32(3))
    assert (data(folded) == data(keys.fold(key, 3))).all()


def test_a_sample_in_a_batch_equals_the_sample_alone():
    batch = keys.fold(keys.seeds([5, 9, 2**32 - 1]), "noise")
    drawn = keys.normal(batch, (2, 3))
    assert drawn.shape == (3, 2, 3)
    for i, number in enumerate([5, 9, 2**32 - 1]):
        alone = keys.fold(keys.seed(number), "noise")
        assert (data(alone) == data(batch[i])).all()
        assert (drawn[i] == jax.random.normal(alone, (2, 3))).all()
        assert (drawn[i] == keys.normal(keys.fold(keys.seeds([number]), "noise"), (2, 3))[0]).all()


def test_seeds_are_the_same_under_another_default_generator():
    with jax.default_prng_impl("rbg"):
        other = keys.seed(5)
    assert (data(other) == data(keys.seed(5))).all()


def test_per_sample_keys_do_not_depend_on_the_batch_size():
    key = keys.seed(1)
    small, large = keys.per_sample(key, 2), keys.per_sample(key, 5)
    assert (data(small) == data(large[:2])).all()
    assert len({tuple(row) for row in data(large)}) == 5


def test_bernoulli_is_true_with_its_probability():
    batch = keys.per_sample(keys.seed(0), 4096)
    # Standard error 0.0047 at 4096 draws: 0.02 is four of them.
    assert abs(keys.bernoulli(batch, 0.1).mean() - 0.1) < 0.02
    assert not keys.bernoulli(batch, 0.0).any()
    assert keys.bernoulli(batch, 1.0).all()


@pytest.mark.parametrize("number", [-1, 2**32])
def test_a_seed_out_of_range_is_named(number):
    with pytest.raises(ValueError, match=rf"seed {number} is out of range.*0\.\.4294967295"):
        keys.seed(number)


MAKERS = {"key", "PRNGKey", "split", "fold_in"}


def test_no_other_file_makes_keys():
    """`jax.random.key` and its like depend on the default generator; see `keys`."""
    root = Path(__file__).parents[2]
    found = []
    for folder in ("mv2_jax", "train", "infer", "convert", "configs"):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                made = isinstance(node, ast.Attribute) and node.attr in MAKERS
                if made and ast.unparse(node.value) in ("jax.random", "random", "jr"):
                    found.append(f"{path.relative_to(root)}:{node.lineno}")
    assert {place.rpartition(":")[0] for place in found} == {"mv2_jax/diffusion/keys.py"}


def test_the_rest_of_the_helpers_are_jax_s():
    key = keys.seed(3)
    same = jax.random.key_data
    assert (same(keys.split(key, 3)) == same(jax.random.split(key, 3))).all()
    assert (same(keys.each(key, [5, 2**32 - 1]))[1] == same(keys.fold(key, 2**32 - 1))).all()
    assert (same(keys.seed(7)) == same(jax.random.key(7, impl="threefry2x32"))).all()


PROGRAM = """
import sys
import jax, numpy as np
jax.config.update("jax_disable_most_optimizations", True)
import tiny
from mv2_jax import params
from mv2_jax.diffusion import keys
from mv2_jax.stages import stage
from mv2_jax.train import loop
from mv2_jax.train.toybox import worlds
from mv2_jax.train.phase import phase
from mv2_jax.train.task import Task

four = tiny.make()
cfg, held = four.stage("t2i"), four.parameters("t2i")
ids = np.asarray(four.ids(["a red ball", "a cube"])[0])

def batches(seed, start):
    while True:
        drawn = worlds.numbered(seed, np.arange(2))
        x = np.asarray(drawn.x).reshape(2, 1, 1, 1, 1)
        latent = np.broadcast_to(x, (2, *cfg.latent_shape))
        yield {"latent": np.float32(latent), "ids": ids, "null_ids": ids[:1] * 0}
        start += 1

def loss(trained, frozen, batch, key):
    batch = {**batch, "null_ids": batch["null_ids"][0]}
    return stage.loss({**frozen, **trained}, cfg, batch, key)

def init(key):  # a draw from the phase's own key, and weights that a step can move
    return {"spatial": jax.tree.map(lambda w: w + 0.01 * jax.random.normal(key), held["spatial"])}

task = Task(
    init=init, frozen={"text_encoder": held["text_encoder"]}, loss=loss, batches=batches,
    components=lambda p: p, configs=lambda p: {}, sample=None,
)
settings = {"name": "x/y", "steps": 2, "batch": 2, "checkpoint_minutes": 0.0}
from pathlib import Path
done = loop.run(task, phase("t2i", **settings), Path(sys.argv[1]) / "run")
both = np.asarray(four.t2i(["a red ball", "a cube"], keys=keys.seeds([1, 2])))
alone = np.asarray(four.t2i(["a cube"], keys=keys.seeds([2])))
print("together and alone", np.abs(both[1] - alone[0]).max())
assert np.abs(both[1] - alone[0]).max() < 2e-4  # of pictures; rounding makes 2e-5
trained = params.flatten(jax.device_get(done.state.params))
np.savez(sys.argv[1] + "/made.npz", both=both, **trained)
"""


@pytest.mark.slow
def test_nothing_depends_on_the_default_generator(tmp_path):
    """Two steps of training and a batch of pictures under rbg, usual on TPU, and under threefry."""
    made = {}
    for name in ("rbg", "threefry2x32"):
        folder = tmp_path / name
        folder.mkdir()
        paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        own = {**os.environ, "JAX_DEFAULT_PRNG_IMPL": name, "PYTHONPATH": paths}
        subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], env=own, check=True)
        made[name] = np.load(folder / "made.npz")
    first, second = made.values()
    assert set(first) == set(second) and len(first.files) > 20
    for leaf in first.files:
        np.testing.assert_array_equal(first[leaf], second[leaf], err_msg=leaf)
