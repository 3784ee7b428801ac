"""IP-Adapter's image projections compute what diffusers' do, from both layouts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.config import ImageProjectionConfig, VisionConfig
from mv2_jax.convert.engine import export
from mv2_jax.convert.sources import Renamed
from mv2_jax.convert.tables import ip_adapter as table
from mv2_jax.models.clip_vision import VisionEncoder
from mv2_jax.models.image_projection import ImageProjection, features, null_features

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.loaders.unet import UNet2DConditionLoadersMixin  # noqa: E402
from diffusers.models import embeddings  # noqa: E402

TOLERANCE = 2e-6  # measured: up to 5.7e-7
LINEAR = ImageProjectionConfig("linear", in_width=20, out_width=24, tokens=4)
FULL = ImageProjectionConfig("full", in_width=20, out_width=24, tokens=0)
RESAMPLER = ImageProjectionConfig(
    "resampler", in_width=20, width=32, out_width=24, tokens=5, depth=4, heads=2, head_width=64
)


def ready(parity, cfg, state, example):
    """Our jitted projection with the state dict's weights, and those weights."""
    ours = ImageProjection(cfg)
    prefix, rules = table.find(state)
    params = parity.convert(Renamed(state, prefix), rules, parity.shapes(ours, example))
    return jax.jit(lambda x: ours.apply({"params": params}, x)), params, rules


def torch_output(module, x):
    with torch.no_grad():
        return module(torch.from_numpy(x))


@pytest.mark.parametrize("batch", [1, 3])
def test_linear(parity, batch):
    theirs = embeddings.ImageProjection(LINEAR.in_width, LINEAR.out_width, LINEAR.tokens)
    theirs = parity.randomise(theirs)
    x = parity.noise(batch, LINEAR.in_width)
    apply, params, rules = ready(parity, LINEAR, theirs.state_dict(), x)
    assert parity.error(apply(x), torch_output(theirs, x)) < TOLERANCE
    parity.same_state(export(params, rules), theirs.state_dict())


@pytest.mark.parametrize("batch", [1, 3])
def test_full(parity, batch):
    theirs = embeddings.IPAdapterFullImageProjection(FULL.in_width, FULL.out_width)
    theirs = parity.randomise(theirs)
    x = parity.noise(batch, 7, FULL.in_width)
    apply, params, rules = ready(parity, FULL, theirs.state_dict(), x)
    assert parity.error(apply(x), torch_output(theirs, x)) < TOLERANCE
    parity.same_state(export(params, rules), theirs.state_dict())


@pytest.mark.parametrize("batch", [1, 3])
def test_resampler(parity, batch):
    cfg = dataclasses.replace(RESAMPLER, depth=2, heads=3, head_width=8)
    theirs = embeddings.IPAdapterPlusImageProjection(
        embed_dims=cfg.in_width,
        output_dims=cfg.out_width,
        hidden_dims=cfg.width,
        depth=cfg.depth,
        dim_head=cfg.head_width,
        heads=cfg.heads,
        num_queries=cfg.tokens,
        ffn_ratio=cfg.mlp_ratio,
    )
    theirs = parity.randomise(theirs)
    x = parity.noise(batch, 7, cfg.in_width)
    apply, params, rules = ready(parity, cfg, theirs.state_dict(), x)
    assert parity.error(apply(x), torch_output(theirs, x)) < TOLERANCE
    parity.same_state(export(params, rules), theirs.state_dict())


def original_state(cfg, seed=0):
    """Random weights under IP-Adapter's own names, as its files hold them."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows, columns):
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    def pair(width):
        noise = 0.2 * torch.randn(2, width, generator=generator)
        return {"weight": 1 + noise[0], "bias": noise[1]}

    out = cfg.out_width
    if cfg.kind == "linear":
        weight = matrix(cfg.tokens * out, cfg.in_width)
        layers = {"proj": {"weight": weight, "bias": pair(len(weight))["bias"]}, "norm": pair(out)}
        return {f"{name}.{k}": x for name, part in layers.items() for k, x in part.items()}
    if cfg.kind == "full":
        layers = {"proj.3": pair(out)}
        for name, rows in (("proj.0", cfg.in_width), ("proj.2", out)):
            bias = pair(rows)["bias"]
            layers[name] = {"weight": matrix(rows, cfg.in_width), "bias": bias}
        return {f"{name}.{k}": x for name, part in layers.items() for k, x in part.items()}
    width, inner, wide = cfg.width, cfg.heads * cfg.head_width, cfg.mlp_ratio * cfg.width
    parts = {
        "proj_in": {**pair(width), "weight": matrix(width, cfg.in_width)},
        "proj_out": {**pair(out), "weight": matrix(out, width)},
        "norm_out": pair(out),
    }
    for i in range(cfg.depth):
        parts |= {f"layers.{i}.{name}": pair(width) for name in ("0.norm1", "0.norm2", "1.0")}
        shapes = {
            "0.to_q": (inner, width),
            "0.to_kv": (2 * inner, width),
            "0.to_out": (width, inner),
        }
        shapes |= {"1.1": (wide, width), "1.3": (width, wide)}
        parts |= {f"layers.{i}.{name}": {"weight": matrix(*s)} for name, s in shapes.items()}
    state = {f"{name}.{k}": x for name, part in parts.items() for k, x in part.items()}
    return {"latents": matrix(cfg.tokens, width)[None], **state}


@pytest.mark.parametrize("cfg", [LINEAR, RESAMPLER, FULL], ids=lambda cfg: cfg.kind)
def test_original_layout(parity, cfg):
    """diffusers' own loader reads the same original names into its modules."""
    state = original_state(cfg)
    theirs = UNet2DConditionLoadersMixin._convert_ip_adapter_image_proj_to_diffusers(
        None, dict(state), low_cpu_mem_usage=False
    )
    x = parity.noise(3, cfg.in_width) if cfg.kind == "linear" else parity.noise(3, 7, cfg.in_width)
    named = {f"image_proj.{name}": tensor for name, tensor in state.items()}
    named["ip_adapter.1.to_k_ip.weight"] = torch.zeros(2, 2)  # the UNet's part of such a file
    apply, params, rules = ready(parity, cfg, named, x)
    assert parity.error(apply(x), torch_output(theirs.eval(), x)) < TOLERANCE
    parity.same_state(export(params, rules), state)


def test_unknown_adapters_are_refused():
    with pytest.raises(ValueError, match="full-face adapters are known; FaceID"):
        table.find(["image_proj.proj.0.weight", "image_proj.norm.weight"])


def test_features_and_their_absence(parity):
    encoder = VisionEncoder(VisionConfig(16, 8, 16, 2, 2, 16, projection=12))
    pixels = jnp.asarray(parity.noise(3, 16, 16, 3))
    weights = jax.tree.map(lambda x: parity.noise(*x.shape) / 4, parity.shapes(encoder, pixels))
    encode = jax.jit(lambda x: encoder.apply({"params": weights}, x))
    output = encode(pixels)
    assert features("linear", output) is output.image_embeds
    assert features("resampler", output) is output.hidden_states[1]
    absent = null_features("linear", encode, pixels)
    assert absent.shape == (1, 12) and not absent.any()
    absent = null_features("resampler", encode, pixels)
    blank = encode(jnp.zeros_like(pixels)).hidden_states[1]
    np.testing.assert_allclose(absent, blank[:1], atol=1e-6)
    with pytest.raises(ValueError, match="did you mean 'resampler'"):
        features("resample", output)
    with pytest.raises(ValueError, match="has no projection"):
        features("linear", output._replace(image_embeds=None))


def test_wrong_features_are_refused():
    net = ImageProjection(LINEAR)
    with pytest.raises(ValueError, match=r"takes \[B, 20\], not \[1, 7, 20\]"):
        net.init(jax.random.key(0), jnp.zeros((1, 7, 20)))
