"""The GAN interpolator: exact properties, and parts of it against plain torch operations.

The public code is not here. Where MV2_LDMVFI names a checkout of danier97/LDMVFI (and einops is
installed), a test runs its encoder and decoder beside these on the same random weights, its CUDA
kernel replaced by the transcription of tests/nn/test_edsc.py; elsewhere that test is skipped.
"""

import functools
import importlib
import os
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax import params
from mv2_jax.config import GANVFIConfig, RIFEConfig, from_dict, to_dict
from mv2_jax.convert.engine import ConversionError, convert, export
from mv2_jax.convert.tables import ldmvfi as table
from mv2_jax.models.discriminator import PatchCritic
from mv2_jax.models.gan_heads import Head
from mv2_jax.models.gan_vfi import GANVFI
from mv2_jax.models.vq import Quantiser, perplexity
from mv2_jax.nn.maxvit import MaxAttention
from mv2_jax.nn.windows import blocks, grids, unblocks, ungrids
from mv2_jax.stages import interpolators, vfi_gan, vfi_table

SIZES = dict(
    width=32, multipliers=(1, 2), codes=16, norm_groups=8, window=4, head_widths=(8, 6), taps=3
)
TINY = GANVFIConfig(
    **SIZES, time_width=16, patch_size=2, light=RIFEConfig(widths=(8,), scales=(1,), pad_to=4)
)
PUBLIC = GANVFIConfig.ldmvfi(**{**SIZES, "window": 8, "taps": 5, "head_widths": (64, 32)})
CHECKOUT = os.environ.get("MV2_LDMVFI", "")
RUN = jax.jit(GANVFI(TINY).apply)  # compiled once: every test below runs it on pairs of 13 x 35


@pytest.fixture(autouse=True)
def compile_quickly():
    """Networks run once here, so XLA's optimisations cost more than they save."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def shapes(cfg):
    frame = jax.ShapeDtypeStruct((1, cfg.pad_to, cfg.pad_to, 3), jnp.float32)
    time = jax.ShapeDtypeStruct((1,), jnp.float32)
    return jax.eval_shape(GANVFI(cfg).init, jax.random.key(0), frame, frame, frame, time)["params"]


def weights(cfg, seed=0, fresh_heads=False):
    """Random weights; with `fresh_heads` the last layers of the heads as a new network has them."""
    random = np.random.default_rng(seed)
    last = f"conv_{2 * len(cfg.head_widths) + 2}"

    def leaf(name, shape):
        if fresh_heads and last in name and name.startswith("decoder/heads"):
            centre = np.zeros(shape)
            if name.endswith("bias") and "horizontal" in name:
                centre[cfg.taps // 2] = 1
            return centre
        if name.endswith("var"):
            return random.uniform(0.5, 2, shape)
        if name.endswith("scale"):
            return random.uniform(0.5, 1, shape)
        if len(shape) == 1:
            return random.normal(size=shape) * 0.1
        return random.normal(size=shape) * np.sqrt(1.5 / np.prod(shape[:-1]))

    flat = {k: np.float32(leaf(k, v.shape)) for k, v in params.flatten(shapes(cfg)).items()}
    return params.unflatten(flat)


def frames(count, height, width, many=3, seed=0):
    random = np.random.default_rng(seed)
    return np.float32(random.uniform(-1, 1, size=(many, count, height, width, 3)))


def test_a_fresh_network_gives_the_light_model_s_frame_at_any_size():
    first, second, guess = frames(2, 13, 35)
    tree = {"params": weights(TINY, fresh_heads=True)}
    out, codes = RUN(tree, first, second, guess, np.float32([0.2, 0.7]))
    assert out.shape == guess.shape and out.dtype == jnp.float32
    np.testing.assert_allclose(out, guess, atol=1e-6)
    assert codes.values.shape == (2, 4, 8, 3) and codes.index.max() < 16


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_silent_heads_learn_again_where_they_leak(slope):
    x, head = jnp.ones((1, 4, 4, 3)), Head(3, (4,), slope, jax.nn.initializers.zeros)
    silent = jax.tree.map(lambda leaf: -jnp.ones_like(leaf), head.init(jax.random.key(0), x))
    moved = jax.grad(lambda tree: head.apply(tree, x).sum())(silent)["params"]["conv_0"]
    assert bool(jnp.any(moved["kernel"] != 0)) == (slope > 0)


def test_pairs_do_not_meet_and_times_matter():
    first, second, guess = frames(2, 13, 35, seed=1)
    tree, times = {"params": weights(TINY)}, np.float32([0.2, 0.7])
    out, _ = RUN(tree, first, second, guess, times)
    swapped, _ = RUN(tree, first[::-1], second[::-1], guess[::-1], times[::-1])
    np.testing.assert_allclose(out, swapped[::-1], atol=1e-4)
    other, _ = RUN(tree, first, second, guess, times[::-1])
    assert np.abs(out - other).mean() > 1e-3


@pytest.mark.slow
def test_the_stage_follows_the_light_model_and_keeps_stills():
    light = vfi_table.of(TINY.light)
    rife = jax.eval_shape(
        light.part("network")(TINY.light).init, jax.random.key(0), *[jnp.zeros((1, 4, 4, 3))] * 2,
        jnp.zeros((1, 1)),
    )["params"]  # fmt: skip
    random = np.random.default_rng(0)
    rife = jax.tree.map(lambda s: np.float32(random.normal(size=s.shape) * 0.2), rife)
    tree = {"light": rife, "gan": weights(TINY, fresh_heads=True)}
    first, second = np.clip(frames(1, 12, 17, many=2), -0.99, 0.99)
    times = jnp.array([[0.25, 0.5, 0.75]])
    steady = light.part("between")(rife, TINY.light, first, second, times)
    out = vfi_gan.between(tree, TINY, first, second, times)
    np.testing.assert_allclose(out, steady, atol=1e-5)
    clip = jnp.concatenate((first, first, second))[None]
    filled = interpolators.interpolate(tree, TINY, clip, 4)
    assert filled.shape == (1, 9, 12, 17, 3)
    np.testing.assert_array_equal(filled[0, ::4], clip[0])
    np.testing.assert_array_equal(filled[0, 1:4], np.repeat(first, 3, axis=0))
    np.testing.assert_allclose(filled[0, 5:8], out[0], atol=1e-5)


def test_squares_cut_and_join_and_grids_are_spread():
    x = np.arange(2 * 8 * 12 * 3, dtype=np.float32).reshape(2, 8, 12, 3)
    np.testing.assert_array_equal(unblocks(blocks(x, 4), 8, 12, 4), x)
    np.testing.assert_array_equal(ungrids(grids(x, 4), 8, 12, 4), x)
    assert np.array_equal(blocks(x, 4)[1].reshape(4, 4, 3), x[0, :4, 4:8])
    assert np.array_equal(grids(x, 4)[1].reshape(4, 4, 3), x[0, ::2, 1::3])


def test_attention_over_squares_equals_torch():
    torch = pytest.importorskip("torch")
    layer = MaxAttention(heads=2, window=2)
    random = np.random.default_rng(0)
    x = np.float32(random.normal(size=(1, 4, 6, 8)))
    made = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    p = jax.tree.map(lambda s: np.float32(random.normal(size=s.shape) * 0.5), made)
    ours = jax.jit(layer.apply)({"params": p}, x)
    t = jax.tree.map(torch.tensor, p)
    functional = torch.nn.functional
    y = torch.tensor(x)
    for kind in ("block", "grid"):
        out = y.clone()
        for a in range(2):
            for b in range(3):
                if kind == "block":
                    at = [(2 * a + i, 2 * b + j) for i in range(2) for j in range(2)]
                else:
                    at = [(a + 2 * i, b + 3 * j) for i in range(2) for j in range(2)]
                rows = torch.stack([y[0, i, j] for i, j in at])
                norm, attn = t[f"attn_{kind}_norm"], t[f"attn_{kind}"]
                seen = functional.layer_norm(rows, (8,), norm["scale"], norm["bias"])
                q, k, v = (
                    (seen @ attn[f"to_{n}"]["kernel"]).reshape(4, 2, 4).transpose(0, 1)
                    for n in "qkv"
                )
                bias = torch.zeros(2, 4, 4)
                for m in range(4):
                    for n in range(4):
                        entry = (m // 2 - n // 2 + 1) * 3 + (m % 2 - n % 2 + 1)
                        bias[:, m, n] = attn["rel_pos_bias"][entry]
                got = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
                rows = rows + got.transpose(0, 1).reshape(4, 8) @ attn["to_out"]["kernel"]
                norm, ff = t[f"ff_{kind}_norm"], t[f"ff_{kind}"]
                seen = functional.layer_norm(rows, (8,), norm["scale"], norm["bias"])
                seen = functional.gelu(seen @ ff["net_0"]["kernel"] + ff["net_0"]["bias"])
                rows = rows + seen @ ff["net_3"]["kernel"] + ff["net_3"]["bias"]
                for row, (i, j) in zip(rows, at):
                    out[0, i, j] = row
        y = out
    np.testing.assert_allclose(ours, y.numpy(), atol=2e-5)


def test_codes_are_the_nearest_and_gradients_pass_by():
    layer = Quantiser(codes=5, width=2)
    table = np.float32([[0, 0], [1, 0], [0, 1], [3, 3], [-2, 1]])
    z = np.float32([[[[0.9, 0.2], [2.5, 2.0]], [[-0.1, 0.1], [-9, 0]]]])
    variables = {"params": {"embedding": table}}
    found = layer.apply(variables, z)
    assert found.index.tolist() == [[[1, 3], [0, 4]]]
    np.testing.assert_allclose(found.values, table[found.index], atol=1e-6)
    assert float(found.codebook) == pytest.approx(float(np.mean((table[found.index] - z) ** 2)))
    assert float(found.codebook) == pytest.approx(float(found.commitment))
    through = jax.grad(lambda z: layer.apply(variables, z).values.sum())(z)
    np.testing.assert_array_equal(through, np.ones_like(z))
    pulled = jax.grad(lambda v: layer.apply(v, z).codebook)(variables)["params"]["embedding"]
    assert np.abs(pulled[2]).sum() == 0 and np.abs(pulled[1]).sum() > 0
    assert float(perplexity(found.index, 5)) == pytest.approx(4.0)


def test_the_critic_judges_patches_of_each_picture_alone():
    critic = PatchCritic(width=8, layers=2)
    random = np.random.default_rng(0)
    x = np.float32(random.normal(size=(2, 24, 16, 3)))
    made = jax.eval_shape(critic.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda s: np.float32(random.normal(size=s.shape)), made)
    run = jax.jit(critic.apply)
    logits = run(variables, x)
    assert logits.shape == (2, 4, 2, 1)
    other = run(variables, np.stack((-x[0], x[1])))
    np.testing.assert_allclose(other[1], logits[1], rtol=1e-5)
    assert np.abs(other[0] - logits[0]).mean() > 1e-3


def test_public_sizes_names_and_padding():
    full = shapes(GANVFIConfig.ldmvfi())
    names = export(jax.tree.map(lambda s: np.zeros(s.shape, np.float16), full), table.rules())
    for name, shape in {
        "encoder.down.4.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.0.downsample.conv.weight": (64, 64, 3, 3),
        "encoder.mid.attn_1.attn_block.fn.rel_pos_bias.weight": (225, 1),
        "encoder.mid.attn_1.ff_grid.fn.net.3.weight": (256, 1024),
        "decoder.up.4.cross_attn.proj_in.1.running_var": (1024,),
        "decoder.up.1.cross_attn.proj_in.6.gate.1.weight": (128, 512),
        "decoder.up.2.cross_attn.attn_grid.fn.to_out.0.weight": (128, 128),
        "decoder.up.0.upsample.conv.weight": (64, 64, 3, 3),
        "decoder.moduleAlpha2.6.weight": (25, 25, 3, 3),
        "decoder.moduleKernelVertical1.4.bias": (5,),
        "decoder.moduleResidual.0.weight": (64, 64, 3, 3),
        "quantize.embedding.weight": (8192, 3),
    }.items():
        assert names[name].shape == shape, name
    # A frame of 1048 x 1048 is padded to the next multiple of 256 (the public code: of 1024).
    assert GANVFIConfig().pad_to == 256
    assert from_dict(to_dict(TINY)) == TINY


def test_the_table_refuses_what_it_does_not_know_and_skips_what_training_left():
    tree = weights(PUBLIC)
    names = export(tree, table.rules())
    extra = {
        "loss.discriminator.main.3.num_batches_tracked": np.zeros((), np.int64),
        "decoder.up.0.cross_attn.proj_in.1.num_batches_tracked": np.zeros((), np.int64),
        "decoder.up.1.cross_attn.out_conv.1.weight": np.zeros((2, 2, 3, 3), np.float32),
    }
    alone = convert({**names, **extra}, table.rules(), shapes(PUBLIC))
    assert params.digest(alone) == params.digest(tree)
    whole = {f"first_stage_model.{name}": x for name, x in {**names, **extra}.items()}
    whole |= {"betas": np.zeros(3), "model.diffusion_model.out.0.weight": np.zeros(3)}
    inside = convert(whole, table.rules("first_stage_model."), shapes(PUBLIC))
    assert params.digest(inside) == params.digest(tree)
    with pytest.raises(ConversionError, match=r"decoder\.up\.0\.attn"):
        convert(
            {**names, "decoder.up.0.attn.0.q.weight": np.zeros(1)}, table.rules(), shapes(PUBLIC)
        )


@pytest.mark.parametrize(
    "change, says",
    [
        ({"multipliers": ()}, "needs a level"),
        ({"norm_groups": 12}, "divide by norm_groups, 12"),
        ({"head_width": 64}, "divide by head_width, 64"),
        ({"taps": 4}, "must be odd"),
        ({"public_kernel": True}, "half_heads False and patch_size 1; got True"),
    ],
)
def test_impossible_configs_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        shapes(GANVFIConfig(**{**SIZES, **change}))


def public_modules(monkeypatch):
    """The checkout's model.py; its CUDA kernel and what it never calls here are stand-ins."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("einops")
    spec = importlib.util.spec_from_file_location(
        "edsc_transcription", Path(__file__).parents[1] / "nn" / "test_edsc.py"
    )
    transcription = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(transcription)

    def synthesise(image, *rest):
        arrays = [x.detach().numpy().astype(float) for x in (image, *rest)]
        made = [transcription.kernel(*each) for each in zip(*arrays)]
        return torch.tensor(np.stack(made), dtype=torch.float32)

    kernel, unused = types.ModuleType("dsepconv"), types.ModuleType("ldm.modules.attention")
    kernel.FunctionDSepconv = synthesise
    unused.LinearAttention = unused.SpatialCrossAttentionWithPosEmb = torch.nn.Module
    cupy = types.ModuleType("cupy_module")
    cupy.dsepconv = kernel
    for name, module in {"cupy_module": cupy, "ldm.modules.attention": unused}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(CHECKOUT)
    return torch, importlib.import_module("ldm.modules.diffusionmodules.model")


@pytest.mark.skipif(not CHECKOUT, reason="MV2_LDMVFI names no checkout of danier97/LDMVFI")
def test_equals_the_public_code(monkeypatch):
    torch, public = public_modules(monkeypatch)
    options = dict(
        double_z=False, z_channels=3, resolution=64, in_channels=3, out_ch=3, ch=32,
        ch_mult=[1, 2], num_res_blocks=1, cond_type="max_cross_attn", attn_type="max",
        attn_resolutions=[], dropout=0.0,
    )  # fmt: skip
    # The public norms have 32 groups, written into the code.
    cfg = GANVFIConfig.ldmvfi(width=32, multipliers=(1, 2), codes=16)
    tree = weights(cfg)
    state = {k: torch.tensor(v) for k, v in export(tree, table.rules()).items()}
    encoder = public.FlowEncoder(**options).eval()
    decoder = public.FlowDecoderWithResidual(**options).eval()
    for net, name in ((encoder, "encoder."), (decoder, "decoder.")):
        mine = {k[len(name) :]: v for k, v in state.items() if k.startswith(name)}
        left = net.load_state_dict(mine, strict=False)
        assert not left.unexpected_keys
        assert all("num_batches" in key or "out_conv" in key for key in left.missing_keys)
    first, second, target = frames(1, 32, 32)
    out, codes = jax.jit(GANVFI(cfg).apply)(
        {"params": tree}, first, second, target, np.zeros(1, np.float32)
    )
    with torch.inference_mode():
        turned = [torch.tensor(x).permute(0, 3, 1, 2) for x in (first, second, target)]
        conv = torch.nn.functional.conv2d
        h = conv(encoder(turned[2]), state["quant_conv.weight"], state["quant_conv.bias"])
        table_ = state["quantize.embedding.weight"]
        nearest = torch.cdist(h.permute(0, 2, 3, 1).reshape(-1, 3), table_).argmin(-1)
        np.testing.assert_array_equal(nearest.numpy(), np.asarray(codes.index).reshape(-1))
        z = table_[nearest].reshape(1, *codes.index.shape[1:], 3).permute(0, 3, 1, 2)
        z = conv(z, state["post_quant_conv.weight"], state["post_quant_conv.bias"])
        around = {
            "phi_prev_list": encoder(turned[0], True)[1],
            "phi_next_list": encoder(turned[1], True)[1],
            "frame_prev": turned[0],
            "frame_next": turned[1],
        }
        theirs = decoder(z, around).permute(0, 2, 3, 1).numpy()
    # Measured: 9e-6, where values are 0.5 on average.
    np.testing.assert_allclose(out, theirs, atol=6e-5)
