"""What the backward pass computes again: less is kept, and gradients are the same.

XLA's own count of a program on a CPU says nothing of it: its buffers are those of convolutions. So
what `jax.vjp` keeps is counted, in bytes, without compiling anything.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from quick import quick

from mv2_jax.configs import paper
from mv2_jax.models.unet import REMAT, Level, UNet
from mv2_jax.nn.transformer import Context
from mv2_jax.train import phase

TEXT = Context(jnp.ones((1, 7, 8)), jnp.ones((1, 2, 8)))


def kept(function, *args):
    """Bytes that stay from the forward to the backward pass, parameters included."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda *args: jax.vjp(function, *args)[1], *args))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def network(remat, cfg=tiny.INFLATED):
    def loss(params, x):
        return jnp.mean(UNet(cfg, remat=remat).apply({"params": params}, x, jnp.ones(1), TEXT) ** 2)

    x = jax.random.normal(jax.random.key(0), (1, 2, 4, 4, 4))
    shapes = jax.eval_shape(UNet(cfg).init, jax.random.key(1), x, jnp.ones(1), TEXT)
    return loss, tiny.random(shapes["params"], 2), x


@pytest.mark.parametrize("way", ["units", pytest.param("dots", marks=pytest.mark.slow)])
def test_gradients_are_those_without(way):
    loss, params, x = network(False)
    plain = jax.tree.leaves(quick(jax.grad(loss))(params, x))
    least = 1e-7 * max(np.abs(leaf).max() for leaf in plain)  # of slopes that are zero but rounded
    ours = jax.tree.leaves(quick(jax.grad(network(way)[0]))(params, x))
    for own, theirs in zip(ours, plain, strict=True):
        atol = 1e-5 * np.abs(theirs).max() + least
        np.testing.assert_allclose(own, theirs, rtol=0, atol=atol)


def test_the_less_is_computed_again_the_more_is_kept():
    cfg = dataclasses.replace(tiny.INFLATED, channels=(16, 32), transformers=(1, 1), heads=(2, 2))
    sizes = {}
    for way in (False, True, *REMAT):
        loss, *rest = network(way, cfg)
        sizes[way] = kept(loss, *rest)
    assert sizes["levels"] < sizes["units"] < sizes["dots"] < sizes[False]
    assert sizes[True] == sizes["units"]


def level(layers, remat):
    """(function, arguments) of I2V's widest plane on the way up, at the paper's size in bf16."""
    cfg, frames, bf16 = paper.I2V.unet, paper.I2V.frames, jnp.bfloat16
    plane = [side // 8 for side in paper.I2V.size]

    def shape(*sizes, dtype=bf16):
        return jax.ShapeDtypeStruct(sizes, dtype)

    x = shape(frames, *plane, 2 * cfg.channels[0])
    skips = tuple(shape(frames, *plane, cfg.channels[0]) for _ in range(layers))
    told = shape(1, 77, 768), shape(1, 16, 768)
    part = Level(cfg, 0, layers, None, bf16, remat)

    def run(params, x, temb, text, image, skips):
        return part.apply({"params": params}, x, temb, Context(text, image), skips)[0]

    def init(x, temb, text, image, skips):
        return part.init(jax.random.key(0), x, temb, Context(text, image), skips)["params"]

    given = (x, shape(frames, 4 * cfg.channels[0]), *told, skips)
    return run, (jax.eval_shape(init, *given), *given)


def test_the_last_level_of_the_papers_i2v_holds_a_unit_at_a_time():
    """What is held while a level is computed again: all that it keeps; of units, their inputs and
    what one keeps."""
    whole, units, one = (
        kept(run, *given) / 2**30
        for run, given in (level(3, False), level(3, "units"), level(1, False))
    )
    print(f"last up level: {whole:.1f} GiB; by units {units + one:.1f} GiB")
    assert units + one < 0.5 * whole


def test_words_of_recipes_are_those_of_networks():
    assert phase.REMAT == REMAT
    with pytest.raises(ValueError, match="did you mean 'units'"):
        phase.check(phase.phase("i2v", remat_policy="unit"))
