"""The exchanges of a program per device, each beside plain array code on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from quick import quick

from mv2_jax import sharding, shards
from mv2_jax.nn.layers import FeedForward, GroupNorm, dense

# data, fsdp, context, tensor
MESHES = [(1, 2, 4, 1), (2, 2, 2, 1), (1, 1, 8, 1), (8, 1, 1, 1)]


def clips(batch, frames, positions=5, width=4, seed=0):
    shape = (batch, frames, positions, width)
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def per_device(function, x, mesh):
    """`function` of a device's frames of x [B, T, ...], joined; on whole clips without a mesh."""
    samples, layout = shards.lay_out(*x.shape[:2], mesh)

    def local(x):
        return shards.joined(function(shards.own(x)))

    return shards.per_device(local, (x,), lambda _: ((P(samples),), P(samples)), layout)


def over_time(x):
    """[B, t, L, C]: something that mixes the frames of each position."""
    y = shards.to_positions(x)
    y = y + 2 * jnp.cumsum(jnp.sin(y), axis=1) + y.mean(1, keepdims=True)
    return shards.to_frames(y, x.shape[2])


def normalised(x):
    """A group norm over whole clips."""
    b, t, positions, c = x.shape
    norm = GroupNorm(2, frames=shards.frames(t))
    own = {"params": {"scale": 1 + jnp.arange(c) / 4, "bias": jnp.arange(c) / 8}}
    return norm.apply(own, x.reshape(b * t, positions, c)).reshape(x.shape)


@pytest.mark.parametrize("function", [over_time, normalised])
@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("batch, frames", [(1, 1), (2, 3), (3, 7), (1, 8)])
def test_clips_over_devices_are_what_they_are_on_one(function, sizes, batch, frames):
    x, g = clips(batch, frames), clips(batch, frames, seed=1)
    want, back = jax.vjp(function, x)
    mesh = sharding.make_mesh(*sizes)
    with jax.set_mesh(mesh):
        over = quick(
            lambda x, g: (lambda y, b: (y, *b(g)))(
                *jax.vjp(lambda x: per_device(function, x, jax.sharding.get_abstract_mesh()), x)
            )
        )
        got, pulled = over(x, g)
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-6)
    np.testing.assert_allclose(pulled, *back(g), rtol=0, atol=1e-5)


def test_where_samples_and_frames_lie():
    def of(samples, frames, *sizes):
        return shards.lay_out(samples, frames, sharding.make_mesh(*sizes).abstract_mesh)

    whole = shards.Layout()
    assert of(8, 1, 2, 4, 1, 1) == (("data", "fsdp"), whole)
    assert of(2, 5, 1, 2, 4, 1) == ("fsdp", shards.Layout(5, ("context",)))
    # One sample leaves fsdp to its frames, and what they cannot use to the tokens of a plane.
    assert of(1, 32, 1, 2, 4, 1) == (None, shards.Layout(32, ("context", "fsdp")))
    assert of(1, 3, 1, 2, 4, 1) == (None, shards.Layout(3, ("context",), ("fsdp",)))
    assert of(1, 1, 1, 8, 1, 1) == (None, shards.Layout(0, (), ("fsdp",)))


def test_a_layer_gathers_its_own_parameter_and_its_gradient_is_summed_and_split():
    rng = np.random.default_rng(0)
    shapes = {"net_0": {"proj": {"kernel": (6, 48), "bias": (48,)}}}
    shapes["net_2"] = {"kernel": (24, 6), "bias": (6,)}
    tree = jax.tree.map(
        lambda shape: jnp.float32(rng.standard_normal(shape) / 4),
        shapes,
        is_leaf=lambda shape: isinstance(shape, tuple),
    )
    x = jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)

    def loss(tree, x):
        def run(tree, x):
            return FeedForward().apply({"params": tree}, x)

        return jnp.sum(jnp.sin(shards.over_samples(run, tree, x)))

    want = jax.grad(loss)(tree, x)
    mesh = sharding.make_mesh(1, 2, 2, 2)
    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss))
        args = sharding.shard_params(tree, mesh), x
        got, text = step(*args), step.lower(*args).compile().as_text()
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    assert "all-gather" in text and "reduce-scatter" in text


def test_a_parameter_of_no_known_part_is_refused():
    mesh = sharding.make_mesh(1, 2, 2, 2)
    tree = {"kernel": jnp.ones((3, 8))}

    def run(tree, x):
        return dense(8, name=None, dtype=jnp.float32).apply({"params": tree}, x)

    with jax.set_mesh(mesh), pytest.raises(ValueError, match="no axis of the mesh"):
        shards.over_samples(run, tree, jnp.ones((4, 7)), gathered=False)
