"""EMA-VFI: its exact properties, and its window attention against a plain loop over tokens.

The public code itself is not here. Where MV2_EMA_VFI names a checkout of MCG-NJU/EMA-VFI, a test
runs it beside this one on the same random weights; elsewhere that test is skipped.
"""

import functools
import importlib
import os
import sys
import types
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax import params
from mv2_jax.config import EMAVFIConfig
from mv2_jax.convert.engine import ConversionError, convert, export
from mv2_jax.convert.tables import ema_vfi as table
from mv2_jax.models.ema_features import InterFrameAttention, InterFrameBlock, window_mask
from mv2_jax.models.ema_vfi import EMAVFI, unpad
from mv2_jax.stages import interpolators, vfi_ema

TINY = EMAVFIConfig(width=4, depths=(1, 1, 1, 1, 2))
SMALL = EMAVFIConfig(width=16, depths=(2, 2, 2, 2, 2))
CHECKOUT = os.environ.get("MV2_EMA_VFI", "")


@pytest.fixture(autouse=True)
def compile_quickly():
    """Networks run once here, so XLA's optimisations cost more than they save."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def shapes(cfg):
    frame = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    times = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    return jax.eval_shape(EMAVFI(cfg).init, jax.random.key(0), frame, frame, times)["params"]


def weights(cfg, seed=0):
    """Random weights that keep signals alive, so that flows reach some pixels."""
    random = np.random.default_rng(seed)

    def leaf(name, shape):
        if name.endswith(("scale", "alpha")):
            return random.uniform(0.2, 0.9, shape)
        if name.endswith("bias"):
            return random.normal(size=shape) * 0.1
        spread = np.sqrt(1.5 / np.prod(shape[:-1]))
        return random.normal(size=shape) * spread * (4 if "conv_2" in name else 1)

    flat = {k: np.float32(leaf(k, v.shape)) for k, v in params.flatten(shapes(cfg)).items()}
    return params.unflatten(flat)


def frames(count, height, width, seed=0):
    """Smooth noise in [0, 1], [2, count, height, width, 3]."""
    random = np.random.default_rng(seed)
    x = random.uniform(size=(2, count, height // 3 + 2, width // 3 + 2, 3))
    x = np.repeat(np.repeat(x, 3, axis=2), 3, axis=3)[:, :, :height, :width]
    return np.float32(x)


@pytest.mark.parametrize("cfg, millions", [(EMAVFIConfig(), 65.66), (SMALL, 14.49)])
def test_the_public_sizes_have_the_public_number_of_parameters(cfg, millions):
    assert params.count(shapes(cfg)) / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_table_gives_the_public_names_and_goes_back():
    tree = weights(TINY)
    names = export(tree, table.rules())
    for name, shape in {
        "module.feature_bone.block1.conv.0.weight": (4, 3, 3, 3),
        "module.feature_bone.block2.conv.1.weight": (8,),
        "module.feature_bone.patch_embed3.0.weight": (16, 8, 3, 3),
        "module.feature_bone.patch_embed4.layers.6.weight": (4, 4, 3, 3),
        "module.feature_bone.patch_embed4.proj.weight": (32, 28, 1, 1),
        "module.feature_bone.block5.1.attn.kv.weight": (128, 64),
        "module.feature_bone.block4.0.attn.cor_embed.weight": (32, 2),
        "module.feature_bone.block4.0.mlp.dwconv.dwconv.weight": (128, 1, 3, 3),
        "module.block.1.conv.0.0.weight": (16, 25, 3, 3),
        "module.block.0.conv.2.1.weight": (5,),
        "module.unet.down0.conv1.0.weight": (16, 25, 3, 3),
        "module.unet.up0.0.weight": (256, 64, 4, 4),
        "module.unet.conv.weight": (3, 8, 3, 3),
    }.items():
        assert names[name].shape == shape, name
    extra = {
        "module.feature_bone.block4.1.attn_mask": np.zeros((4, 49, 49), np.float32),
        "module.feature_bone.block4.1.HW": np.zeros((1,), np.float32),
    }
    back = convert({**names, **extra}, table.rules(), shapes(TINY))
    assert params.digest(back) == params.digest(tree)
    with pytest.raises(ConversionError, match="without a place in the target"):
        convert({**names, "module.block.2.conv.0.0.bias": np.zeros(1)}, table.rules(), shapes(TINY))


def plain_block(p, x, window, shift):
    """InterFrameBlock's attention by a loop over tokens: [2, h, w, C] -> (x + seen, motion)."""
    height, width, channels = x.shape[1:]
    pads = [(-n % window) // 2 for n in (height, width)]
    tall, wide = (-(-n // window) * window for n in (height, width))
    heads = channels // 32

    def norm(v):
        v = (v - v.mean()) / np.sqrt(v.var() + 1e-6)
        return v * p["norm1"]["scale"] + p["norm1"]["bias"]

    def linear(name, v):
        return v @ p["attn"][name]["kernel"] + p["attn"][name]["bias"]

    token, place = np.zeros((2, tall, wide, channels)), np.zeros((tall, wide, 2))
    for i in range(height):
        for j in range(width):
            token[:, i + pads[0], j + pads[1]] = x[:, i, j]
            place[i + pads[0], j + pads[1]] = 2 * j / (width - 1) - 1, 2 * i / (height - 1) - 1
    token = np.apply_along_axis(norm, -1, token)

    def padding(i, j):
        edges = ((pads[0], height), (pads[1], width))
        return tuple((n >= low) + (n >= low + size) for n, (low, size) in zip((i, j), edges))

    def rolled(i, j):
        return tuple((n >= m - window) + (n >= m - shift) for n, m in zip((i, j), (tall, wide)))

    out = token.copy()
    motion = np.zeros((2, tall, wide, p["attn"]["cor_embed"]["bias"].size))
    grid = [(i, j) for i in range(tall) for j in range(wide)]  # positions after the roll
    for side in range(2):
        for i, j in grid:
            here = ((i + shift) % tall, (j + shift) % wide)
            mates = [
                (a, b) for a, b in grid if (a // window, b // window) == (i // window, j // window)
            ]
            apart = np.array([
                padding(a, b) != padding(i, j) or (shift and rolled(a, b) != rolled(i, j))
                for a, b in mates
            ])  # fmt: skip
            there = [((a + shift) % tall, (b + shift) % wide) for a, b in mates]
            keys = np.stack([token[1 - side][at] for at in there])
            coords = linear("cor_embed", np.stack([place[at] for at in there]))
            split = [
                y.reshape(len(mates), heads, -1)
                for y in (linear("k", keys), linear("v", keys), coords)
            ]
            q = linear("q", token[side][here]).reshape(heads, -1)
            scores = np.einsum("nd,lnd->nl", q, split[0]) / np.sqrt(32) - 100 * apart
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            seen, went = (np.einsum("nl,lnd->nd", scores, v).reshape(-1) for v in split[1:])
            out[side][here] += linear("proj", seen)
            motion[side][here] = linear("motion_proj", went - linear("cor_embed", place[here]))
    inner = slice(pads[0], pads[0] + height), slice(pads[1], pads[1] + width)
    return out[:, *inner], motion[:, *inner]


@pytest.mark.parametrize("plane, shift", [((4, 8), 0), ((4, 8), 2), ((5, 7), 0), ((5, 7), 2)])
def test_a_window_block_equals_a_loop_over_tokens(plane, shift):
    block = InterFrameBlock(motion=16, window=4, shift=shift)
    x = np.random.default_rng(1).normal(size=(2, *plane, 64)).astype(np.float32)
    made = jax.eval_shape(block.init, jax.random.key(0), x)["params"]
    random = np.random.default_rng(2)
    p = jax.tree.map(lambda s: np.float32(random.normal(size=s.shape) * 0.2), made)
    p["mlp"]["fc2"] = jax.tree.map(np.zeros_like, p["mlp"]["fc2"])  # leaves the attention alone
    seen, motion = jax.jit(block.apply)({"params": p}, x)
    plain = plain_block(p, x.astype(np.float64), 4, shift)
    np.testing.assert_allclose(seen, plain[0], atol=1e-5)
    np.testing.assert_allclose(motion, plain[1], atol=1e-5)


def test_equal_frames_move_by_what_the_attention_moves_and_masks_are_symmetric():
    mask = window_mask(5, 9, 7, 3)
    assert mask.shape == (2, 49, 49) and set(np.unique(mask)) == {-100.0, 0.0}
    assert np.array_equal(mask, mask.transpose(0, 2, 1)) and not mask[:, range(49), range(49)].any()
    assert window_mask(7, 14, 7, 0) is None
    # Coordinates all equal: wherever the attention looks, nothing has moved.
    layer = InterFrameAttention(motion=32)
    x = np.random.default_rng(0).normal(size=(2, 49, 64)).astype(np.float32)
    places = np.ones((1, 49, 2), np.float32)
    variables = jax.jit(lambda *a: layer.init(*a, None))(jax.random.key(0), x, places)
    _, motion = jax.jit(lambda *a: layer.apply(*a, None))(variables, x, places)
    np.testing.assert_allclose(motion, 0, atol=1e-6)


def test_the_backbone_serves_every_time_and_pairs_do_not_meet():
    tree = {"params": weights(TINY)}
    first, second = frames(3, 35, 50)
    times = np.array([[0.25], [0.3], [0.5]], np.float32)
    model = EMAVFI(TINY)
    run = jax.jit(model.apply)
    together = run(tree, first, second, times)
    assert together.shape == (3, 1, 35, 50, 3)
    pair = jax.jit(lambda *a: model.apply(*a, method="features"))(tree, first, second)
    at = jax.jit(lambda *a: model.apply(*a, method="at"))
    again = unpad(at(tree, pair, times[:, 0]), 35, 50, TINY)
    np.testing.assert_allclose(together[:, 0], again, atol=2e-5)
    later = unpad(at(tree, pair, times[:, 0] + np.float32(0.4)), 35, 50, TINY)
    assert np.abs(later - again).mean() > 1e-3
    order = np.array([2, 0, 1])
    other = run(tree, first[order], second[order], times[order])
    np.testing.assert_allclose(together[order], other, atol=2e-5)


@pytest.mark.slow
def test_the_stage_rotates_pads_and_keeps_stills():
    tree = weights(TINY)
    first, second = frames(1, 30, 41) * 2 - 1
    times = jnp.array([[0.5, 0.25]])
    plain = vfi_ema.between(tree, TINY, first, second, times)
    turned = vfi_ema.between(tree, TINY, first[:, ::-1, ::-1], second[:, ::-1, ::-1], times)
    turned = turned[:, :, ::-1, ::-1]
    both = vfi_ema.between(tree, TINY, first, second, times, tta=True)
    np.testing.assert_allclose(both, (plain + turned) / 2, atol=2e-5)
    assert np.abs(plain - turned).mean() > 1e-3
    # Weights that know the middle alone: four frames for one are two doublings.
    middle = replace(TINY, any_time=False)
    clip = jnp.concatenate((first, second, second))[None]
    filled = interpolators.interpolate(tree, middle, clip, 2)
    assert filled.shape == (1, 5, 30, 41, 3)
    np.testing.assert_array_equal(filled[0, ::2], clip[0])
    np.testing.assert_array_equal(filled[0, 3], clip[0, 1])
    np.testing.assert_allclose(filled[0, 1], plain[0, 0], atol=2e-5)
    with pytest.raises(ValueError, match="power of two, not 3"):
        interpolators.interpolate(tree, middle, clip, 3)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"depths": (1, 1, 2, 2)}, "five numbers"),
        ({"width": 6}, "multiple of 32"),
        ({"depths": (1, 1, 1, 3, 2)}, "stage's depth, 3"),
        ({"pad_to": 24}, "multiple of 16"),
    ],
)
def test_impossible_configs_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        shapes(EMAVFIConfig(**{"width": 4, "depths": (1, 1, 1, 2, 2)} | change))


def public_network(monkeypatch, cfg):
    """The checkout's own network. timm, which it wants three small things of, may be missing."""
    torch = pytest.importorskip("torch")
    layers = types.ModuleType("timm.models.layers")
    layers.DropPath = torch.nn.Identity  # never active: its rate is zero
    layers.to_2tuple = lambda x: (x, x)
    layers.trunc_normal_ = torch.nn.init.trunc_normal_
    for name in ("timm", "timm.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "timm.models.layers", layers)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.syspath_prepend(CHECKOUT)
    for name in [name for name in sys.modules if name.split(".")[0] in ("model", "config")]:
        monkeypatch.delitem(sys.modules, name)
    config = importlib.import_module("config")
    backbone, flows = config.init_model_config(F=cfg.width, W=7, depth=list(cfg.depths))
    extractor, estimation = config.MODEL_CONFIG["MODEL_TYPE"]
    return torch, estimation(extractor(**backbone), **flows).eval()


@pytest.mark.skipif(not CHECKOUT, reason="MV2_EMA_VFI names no checkout of MCG-NJU/EMA-VFI")
@pytest.mark.parametrize("cfg, plane", [(TINY, (75, 101)), (TINY, (256, 224)), (SMALL, (64, 96))])
def test_equals_the_public_code(monkeypatch, cfg, plane):
    torch, net = public_network(monkeypatch, cfg)
    tree = weights(cfg)
    state = {k[len("module.") :]: torch.tensor(v) for k, v in export(tree, table.rules()).items()}
    assert state.keys() == net.state_dict().keys()
    net.load_state_dict(state)
    first, second = frames(2, *plane)
    times = np.array([[0.3, 0.8]] * 2, np.float32)
    ours = np.asarray(jax.jit(EMAVFI(cfg).apply)({"params": tree}, first, second, times))
    padder = importlib.import_module("benchmark.utils.padder").InputPadder
    both = [torch.tensor(x).permute(0, 3, 1, 2) for x in (first, second)]
    pad = padder(both[0].shape, divisor=32)
    both = torch.cat(pad.pad(*both), 1)
    for k, time in enumerate(times[0]):
        with torch.inference_mode():
            flow, _, _, theirs = net(both, timestep=float(time))
        theirs = pad.unpad(theirs).permute(0, 2, 3, 1).numpy()
        assert flow[-1].abs().mean() > 0.5, "weights too small to test the warps"
        # Measured: 6e-7 on average, 4e-5 at most.
        assert np.abs(ours[:, k] - theirs).mean() < 3e-6
        assert np.abs(ours[:, k] - theirs).max() < 2e-4
