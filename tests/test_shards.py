"""The exchanges of a program per device, each beside plain array code on one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P
from quick import quick

from mv2_jax import exchanges, sharding, shards
from mv2_jax.models.vae import AutoencoderKL
from mv2_jax.nn.attention import Attention
from mv2_jax.nn.layers import FeedForward, GroupNorm, dense
from mv2_jax.stages import latents

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
    y = exchanges.to_positions(x)
    y = y + 2 * jnp.cumsum(jnp.sin(y), axis=1) + y.mean(1, keepdims=True)
    return exchanges.to_frames(y, x.shape[2])


def normalised(x):
    """A group norm over whole clips."""
    b, t, positions, c = x.shape
    norm = GroupNorm(2, frames=shards.frames(t))
    own = {"params": {"scale": 1 + jnp.arange(c) / 4, "bias": jnp.arange(c) / 8}}
    return norm.apply(own, x.reshape(b * t, positions, c)).reshape(x.shape)


def among_tokens(heads):
    """Spatial attention."""

    def run(x):
        b, t, positions, c = x.shape
        x = jnp.concatenate([jnp.sin((1 + k) * x) for k in range(6)], -1).reshape(b * t, -1, 6 * c)
        own = {
            name: {"kernel": jnp.asarray(np.random.default_rng(k).standard_normal((24, 24)) / 5)}
            for k, name in enumerate(("to_q", "to_k", "to_v", "to_out_0"))
        }
        own["to_out_0"]["bias"] = jnp.zeros(24)
        axes = shards.layout().tokens
        y = shards.share(x, axes, 1)
        y = Attention(heads).apply({"params": own}, y, length=positions)
        return shards.join(y, axes, 1, positions).reshape(b, t, positions, 6, c).mean(3)

    return run


@pytest.mark.parametrize("function", [over_time, normalised])
@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("batch, frames", [(1, 1), (2, 3), (3, 7), (1, 8)])
def test_clips_over_devices_are_what_they_are_on_one(function, sizes, batch, frames):
    beside_one_device(function, sizes, batch, frames)


@pytest.mark.parametrize(
    "heads, sizes, batch, frames",
    [
        (8, (1, 2, 4, 1), 1, 1),  # five tokens over eight devices, which take a head each
        (3, (1, 1, 8, 1), 2, 1),  # keys and values travel
        pytest.param(4, (2, 4, 1, 1), 2, 1, marks=pytest.mark.slow),
        pytest.param(4, (1, 2, 4, 1), 1, 3, marks=pytest.mark.slow),
        pytest.param(8, (8, 1, 1, 1), 3, 1, marks=pytest.mark.slow),
    ],
)
def test_tokens_over_devices_are_what_they_are_on_one(heads, sizes, batch, frames):
    beside_one_device(among_tokens(heads), sizes, batch, frames)


def beside_one_device(function, sizes, batch, frames):
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


# Two levels of odd planes, an attention, and all that an autoencoder's config can ask for.
VAE = dataclasses.replace(
    tiny.VAE, channels=(4, 8), mid_attention=True, patch_size=2, latent_patch=2, shortcuts=True
)
PUBLIC = dataclasses.replace(tiny.VAE, channels=(4, 8, 8), mid_attention=True, patch_size=1)
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "sizes, cfg, batch, frames, plane, slopes",
    [
        ((1, 2, 4, 1), VAE, 1, 1, (5, 4), False),
        pytest.param((1, 2, 4, 1), VAE, 1, 1, (5, 4), True, marks=SLOW),
        pytest.param(
            (1, 1, 8, 1), PUBLIC, 1, 1, (3, 5), True, marks=SLOW
        ),  # five devices have no row
        pytest.param(
            (2, 2, 2, 1), PUBLIC, 1, 3, (9, 3), True, marks=SLOW
        ),  # frames over a part of them
        pytest.param((1, 2, 2, 2), VAE, 3, 1, (7, 3), True, marks=SLOW),  # inner widths over tensor
    ],
)
def test_rows_of_planes_over_devices_are_what_they_are_on_one(
    sizes, cfg, batch, frames, plane, slopes
):
    """The autoencoder both ways, and the gradients through both."""
    shape = (batch, frames, *(cfg.factor * n for n in plane), 3)
    pixels = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    tree = jax.eval_shape(AutoencoderKL(cfg).init, jax.random.key(0), pixels[0, :1])["params"]
    tree = tiny.random(tree, 0)

    def score(tree, pixels):
        z = latents.encode(tree, cfg, pixels)
        made = latents.decode(tree, cfg, z)
        return jnp.sum(jnp.sin(3 * z)) + jnp.sum(jnp.sin(made)), (z, made)

    both = jax.value_and_grad(score, (0, 1), has_aux=True) if slopes else score
    want = jax.device_get(quick(both)(tree, pixels))
    mesh = sharding.make_mesh(*sizes)
    split = shards.lay_out(batch, frames, mesh.abstract_mesh)[1]
    assert split.tokens  # which the rows are over
    with jax.set_mesh(mesh):
        got = jax.device_get(quick(both)(sharding.shard_params(tree, mesh), pixels))
    least = 1e-3 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(want[1]))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.abs(a - b).max() < 1e-4 * max(np.abs(b).max(), least)
