import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mv2_jax.models.unet import UNet
from mv2_jax.nn import watch
from mv2_jax.nn.attention import Attention
from mv2_jax.nn.transformer import Context


def test_what_was_seen_weighs_the_values_into_what_came_out():
    module, rng = Attention(1, jnp.float32, image_tokens=True), np.random.default_rng(0)
    x, text, image = (np.float32(rng.normal(size=(3, n, 8))) for n in (5, 7, 2))
    shapes = jax.eval_shape(module.init, jax.random.key(9), x, text, image)
    params = tiny.random(shapes["params"], 1)

    @jax.jit
    def run(params):
        given = {"params": params}
        alone = module.apply(given, x, text, image, 0.5)
        return alone, watch.cross_attention(module.apply, given, x, text, image, 0.5)

    alone, (out, maps) = run(params)
    assert np.array_equal(out, alone)
    told = np.asarray(maps["text"][""]) @ (text @ params["to_v"]["kernel"])
    shown = np.asarray(maps["image"][""]) @ (image @ params["to_v_ip"]["kernel"])
    rebuilt = (told + 0.5 * shown) @ params["to_out_0"]["kernel"] + params["to_out_0"]["bias"]
    np.testing.assert_allclose(rebuilt, out, atol=1e-5)
    assert maps["text"][""].shape == (3, 5, 7)


def test_every_cross_attention_of_a_unet_and_no_other_is_heard():
    x, t = np.zeros((2, 3, 5, 4, 4), np.float32), np.zeros(2, np.float32)
    context = Context(*(np.ones((2, n, 8), np.float32) for n in (6, 2)))
    unet = UNet(tiny.INFLATED)
    shapes = jax.eval_shape(unet.init, jax.random.key(0), x, t, context)
    params = tiny.random(shapes["params"], 0)

    def run():
        return watch.cross_attention(unet.apply, {"params": params}, x, t, context)

    _, maps = jax.eval_shape(run)
    # One level of two units up and one down, and the middle, each with one layer.
    assert len(maps["text"]) == 4 and set(maps["text"]) == set(maps["image"])
    assert all(path.endswith("attn2") for path in maps["text"])
    assert {leaf.shape for leaf in maps["text"].values()} == {(2, 3 * 5 * 4, 6)}


def test_weights_lie_on_the_plane_of_their_level():
    plane = (5, 8)  # halves to 3 x 4, then 2 x 2
    for height, width in ((5, 8), (3, 4), (2, 2)):
        flat = np.zeros((2, 3 * height * width, 2))
        assert watch.on_plane(flat, 3, plane).shape == (2, 3, height, width, 2)
    with pytest.raises(ValueError, match="no level"):
        watch.on_plane(np.zeros((1, 3 * 7, 2)), 3, plane)
