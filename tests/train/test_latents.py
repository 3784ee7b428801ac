import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.toybox import split
from mv2_jax.train import latents
from mv2_jax.train.toybox import worlds


def test_positions_cover_every_epoch_once_and_depend_on_the_step_alone():
    def epoch(number):
        return np.concatenate([latents.position(3, number * 5 + s, 4, 20) for s in range(5)])

    assert epoch(0).tolist() == list(range(20))
    for number in (1, 2):
        assert sorted(epoch(number)) == list(range(20))
        assert epoch(number).tolist() != list(range(20))
    assert epoch(1).tolist() != epoch(2).tolist()
    across = latents.position(3, 1, 15, 20)  # 15..29: the end of one epoch, the start of the next
    assert across[:5].tolist() == [15, 16, 17, 18, 19]
    assert across[5:].tolist() == epoch(1)[:10].tolist()


def test_shards_are_made_once_when_first_needed_and_kept(tmp_path):
    made = []

    def make(numbers):
        made.append(numbers.tolist())
        return {"x": np.stack([numbers, numbers], 1).astype(np.float16), "n": numbers}

    def new(facts):
        return latents.Shards(tmp_path, facts, make, count=12, size=4)

    shards = new({"vae": "a"})
    taken = shards.take(np.array([9, 1, 8]))
    assert taken["n"].tolist() == [9, 1, 8] and taken["x"].dtype == np.float16
    assert made == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert new({"vae": "a"}).take(np.array([9]))["x"].tolist() == [[9, 9]]
    assert len(made) == 2
    new({"vae": "b"}).take(np.array([9]))  # another encoder: another set
    assert len(made) == 3
    assert not [p for p in tmp_path.rglob("*") if ".part" in p.name]
    assert new({"size": 1}).folder != new({"size": 2}).folder  # a fact, not the shards' size
    with pytest.raises(ValueError, match="12 samples do not divide into shards of 5"):
        latents.Shards(tmp_path, {}, make, count=12, size=5)


def test_samples_are_made_on_every_device_each_as_it_is_alone():
    ran = set()

    def encode(scale, numbers):
        jax.debug.callback(lambda i: ran.add(int(i)), jax.lax.axis_index("rows"))
        drawn = worlds.numbered(0, numbers)
        pixels = worlds.first_frames(drawn, (32, 32))
        return {"mean": scale * pixels.mean((1, 2)), "label": worlds.labels(drawn)}

    assert len(jax.devices()) == 8
    made = latents.on_every_device(encode, jnp.float32(2.0), chunk=2)(np.arange(3, 22))
    jax.effects_barrier()
    assert ran == set(range(8))
    drawn = worlds.numbered(0, jnp.arange(3, 22))
    pixels = worlds.first_frames(drawn, (32, 32))
    assert made["label"].tolist() == worlds.labels(drawn).tolist()
    np.testing.assert_allclose(made["mean"], 2 * pixels.mean((1, 2)), atol=1e-6)


def test_numbered_worlds_are_fixed_and_of_the_training_split():
    many = worlds.numbered(0, jnp.arange(64))
    few = worlds.numbered(0, jnp.array([7, 50]))
    for a, b in zip(many, few):
        assert np.array_equal(np.asarray(a)[[7, 50]], np.asarray(b))
    assert split.is_train(*np.asarray(worlds.labels(many)).T).all()
    assert not np.array_equal(
        worlds.labels(many), worlds.labels(worlds.numbered(1, jnp.arange(64)))
    )
