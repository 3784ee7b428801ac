"""CLIP's vision encoder and preprocessing do what transformers' do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mv2_jax import params as trees
from mv2_jax.config import VisionConfig
from mv2_jax.convert.engine import export
from mv2_jax.convert.sources import Renamed
from mv2_jax.convert.tables import clip as table
from mv2_jax.models.clip_vision import _STD, VisionEncoder, preprocess

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 3e-6  # measured: up to 1.0e-6


def build(parity, size, patch, activation, projection):
    cfg = VisionConfig(size, patch, 32, 2, 4, 48, activation, projection)
    torch_cfg = transformers.CLIPVisionConfig(
        image_size=size,
        patch_size=patch,
        hidden_size=cfg.width,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        intermediate_size=cfg.mlp_width,
        hidden_act=activation,
        projection_dim=projection or 1,
    )
    name = "CLIPVisionModelWithProjection" if projection else "CLIPVisionModel"
    theirs = parity.randomise(getattr(transformers, name)(torch_cfg))
    ours = VisionEncoder(cfg)
    target = parity.shapes(ours, np.zeros((1, size, size, 3), np.float32))
    rules = table.find_vision(theirs.state_dict(), projection=projection is not None)[0].table
    params = parity.convert(theirs.state_dict(), rules, target)
    parity.same_state(export(params, rules), theirs.state_dict())
    return theirs, jax.jit(lambda x: ours.apply({"params": params}, x)), params


@pytest.fixture(scope="module")
def projecting(parity):
    return build(parity, 32, 8, "gelu", 20)


@pytest.fixture(scope="module")
def ragged(parity):
    """An image size that no whole number of patches fills."""
    return build(parity, 50, 16, "quick_gelu", None)


def check(parity, theirs, apply, batch, height, width, resized):
    x = parity.noise(batch, height, width, 3)
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(x).permute(0, 3, 1, 2),
            output_hidden_states=True,
            interpolate_pos_encoding=resized,
        )
    got = apply(x)
    assert len(got.hidden_states) == len(expected.hidden_states) == 3
    for a, b in zip(got.hidden_states, expected.hidden_states):
        assert parity.error(a, b) < TOLERANCE
    return got, expected


@pytest.mark.parametrize(
    ("batch", "height", "width"), [(1, 32, 32), (3, 32, 32), (3, 67, 41), (1, 17, 90)]
)
def test_with_projection(projecting, parity, batch, height, width):
    theirs, apply, _ = projecting
    resized = (height, width) != (32, 32)
    got, expected = check(parity, theirs, apply, batch, height, width, resized)
    assert parity.error(got.image_embeds, expected.image_embeds) < TOLERANCE


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 50, 50), (3, 67, 41)])
def test_without_projection(ragged, parity, batch, height, width):
    theirs, apply, _ = ragged
    got, expected = check(parity, theirs, apply, batch, height, width, height != 50)
    assert parity.error(got.pooled, expected.pooler_output) < TOLERANCE
    assert got.image_embeds is None


def test_an_image_smaller_than_a_patch_is_refused(projecting):
    _, apply, _ = projecting
    with pytest.raises(ValueError, match="a 7x40 image is smaller than one 8x8 patch"):
        apply(np.zeros((1, 7, 40, 3), np.float32))


def test_a_whole_clip_model_converts_from_its_half(projecting, parity):
    theirs, _, params = projecting
    state = {
        **theirs.state_dict(),
        "text_model.final_layer_norm.bias": torch.zeros(2),
        "text_projection.weight": torch.zeros(2, 2),
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
        "logit_scale": torch.ones([]),
    }
    ((prefix, rules),) = table.find_vision(state)
    got = parity.convert(Renamed(state, prefix), rules, params)
    jax.tree.map(np.testing.assert_array_equal, got, params)


def picture(height, width):
    """A smooth picture with grain, so that resizing overshoots and rounding matters."""
    rng = np.random.default_rng(height)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), int)
    return np.clip(smooth + rng.integers(-30, 31, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(64, 64, 32), (67, 41, 32), (200, 131, 112), (32, 32, 32), (32, 51, 32), (20, 33, 32)],
)
def test_preprocessing(height, width, size):
    processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    image = picture(height, width)
    expected = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
    expected = expected.transpose(0, 2, 3, 1)
    inside = jnp.asarray(image[None], jnp.float32) / 127.5 - 1.0
    levels = 255.0 * np.array(_STD)  # from normalised units to grey levels

    def difference(quantise):
        got = preprocess(inside, size, quantise=quantise)
        assert got.shape == expected.shape and got.dtype == jnp.float32
        return np.abs(np.asarray(got) - expected) * levels

    # With PIL's rounding: equal, but for a tie that falls the other way one time in 10,000.
    rounded = difference(True)
    assert rounded.max() < 1.01 and (rounded > 1e-3).mean() < 2e-4
    # Without: what two roundings to whole levels cost, at most one level and 0.32 on average.
    smooth = difference(False)
    assert smooth.max() < 1.2 and smooth.mean() < 0.35


def test_preprocessing_has_a_gradient():
    image = jnp.full((1, 40, 24, 3), 0.3)
    slope = jax.grad(lambda x: preprocess(x, 16).sum())(image)
    # Each output pixel is an average of inputs: the slopes of all add up to one a pixel,
    # times 127.5 levels a unit, over 255 levels and the channel's deviation.
    expected = 16 * 16 * 0.5 / np.array(_STD)
    np.testing.assert_allclose(slope.sum((0, 1, 2)), expected, rtol=1e-4)
    assert float(jnp.abs(slope[:, 0]).max()) == 0  # the crop leaves the top row out


def test_open_clip_vision_layout(projecting, parity):
    """OpenCLIP's names and shapes, written down here by hand, give the same tree."""
    _, _, params = projecting
    flat = trees.flatten(params)
    state = {
        "class_embedding": flat["embeddings/class_embedding"],
        "conv1.weight": flat["embeddings/patch_embedding/kernel"].transpose(3, 2, 0, 1),
        "positional_embedding": flat["embeddings/position_embedding/embedding"],
        "proj": flat["visual_projection/kernel"],
    }
    for ours, theirs in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")):
        state[f"{theirs}.weight"] = flat[f"{ours}/scale"]
        state[f"{theirs}.bias"] = flat[f"{ours}/bias"]
    for i in range(2):
        layer, block = f"encoder/layers_{i}", f"transformer.resblocks.{i}"
        for n in (1, 2):
            state[f"{block}.ln_{n}.weight"] = flat[f"{layer}/layer_norm{n}/scale"]
            state[f"{block}.ln_{n}.bias"] = flat[f"{layer}/layer_norm{n}/bias"]
        attention = f"{layer}/self_attn"
        state[f"{block}.attn.in_proj_weight"] = np.concatenate(
            [flat[f"{attention}/{letter}_proj/kernel"].T for letter in "qkv"]
        )
        state[f"{block}.attn.in_proj_bias"] = np.concatenate(
            [flat[f"{attention}/{letter}_proj/bias"] for letter in "qkv"]
        )
        pairs = {"attn.out_proj": "self_attn/out_proj", "mlp.c_fc": "mlp/fc1"}
        for theirs, ours in {**pairs, "mlp.c_proj": "mlp/fc2"}.items():
            state[f"{block}.{theirs}.weight"] = flat[f"{layer}/{ours}/kernel"].T
            state[f"{block}.{theirs}.bias"] = flat[f"{layer}/{ours}/bias"]
    state = {f"visual.{name}": x for name, x in state.items()} | {"logit_scale": np.ones(())}
    ((prefix, rules),) = table.find_vision(state)
    assert prefix == "visual."
    got = parity.convert(Renamed(state, prefix), rules, params)
    jax.tree.map(np.testing.assert_array_equal, got, params)
