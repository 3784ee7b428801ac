"""CLIP's text encoder computes what transformers' does, from every layout of its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax import params as trees
from mv2_jax.config import TextConfig
from mv2_jax.convert.engine import ConversionError, export
from mv2_jax.convert.sources import Renamed
from mv2_jax.convert.tables import clip as table
from mv2_jax.models.clip_text import TextEncoder, context, end_positions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 3e-6  # measured: up to 1.0e-6
VOCAB, LENGTH = 60, 13
IDS = np.random.default_rng(0).integers(3, VOCAB - 1, (3, LENGTH)).astype(np.int32)
IDS[0, 5:] = IDS[1, 12] = IDS[2, 7] = VOCAB - 1
IDS[2, 4] = 2  # what a literal reading of the old configs would take for the end


def configs(activation="quick_gelu", projection=None, eos=VOCAB - 1):
    cfg = TextConfig(VOCAB, LENGTH, 32, 3, 4, 48, activation, projection, eos)
    theirs = transformers.CLIPTextConfig(
        vocab_size=VOCAB,
        max_position_embeddings=LENGTH,
        hidden_size=cfg.width,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        intermediate_size=cfg.mlp_width,
        hidden_act=activation,
        projection_dim=projection or 1,
        bos_token_id=0,
        eos_token_id=eos,
    )
    return cfg, theirs


def build(parity, **options):
    """(torch module, our apply function, params, config)."""
    cfg, torch_cfg = configs(**options)
    projected = cfg.projection is not None
    name = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    theirs = parity.randomise(getattr(transformers, name)(torch_cfg))
    ours = TextEncoder(cfg)
    target = parity.shapes(ours, jnp.asarray(IDS))
    ((prefix, rules),) = table.find_text(theirs.state_dict(), projection=projected)
    params = parity.convert(Renamed(theirs.state_dict(), prefix), rules, target)
    return theirs, jax.jit(lambda params, ids: ours.apply({"params": params}, ids)), params, cfg


def run_torch(module, ids):
    with torch.no_grad():
        return module(torch.from_numpy(ids), output_hidden_states=True)


@pytest.fixture(scope="module")
def plain(parity):
    return build(parity)


@pytest.fixture(scope="module")
def projecting(parity):
    return build(parity, activation="gelu", projection=24)


def states_agree(parity, got, expected):
    assert len(got.hidden_states) == len(expected.hidden_states) == 4
    for ours, theirs in zip(got.hidden_states, expected.hidden_states):
        assert parity.error(ours, theirs) < TOLERANCE
    assert parity.error(got.last, expected.last_hidden_state) < TOLERANCE


@pytest.mark.parametrize("batch", [1, 3])
def test_states_and_pooled(plain, parity, batch):
    theirs, apply, params, _ = plain
    got, expected = apply(params, IDS[:batch]), run_torch(theirs, IDS[:batch])
    states_agree(parity, got, expected)
    assert parity.error(got.pooled, expected.pooler_output) < TOLERANCE
    assert got.projected is None


@pytest.mark.parametrize("batch", [1, 3])
def test_projection_and_exact_gelu(projecting, parity, batch):
    theirs, apply, params, _ = projecting
    got, expected = apply(params, IDS[:batch]), run_torch(theirs, IDS[:batch])
    states_agree(parity, got, expected)
    assert parity.error(got.projected, expected.text_embeds) < TOLERANCE


def test_old_configs_pool_at_the_largest_id(parity):
    theirs, apply, params, _ = build(parity, eos=2)
    expected = run_torch(theirs, IDS).pooler_output
    assert parity.error(apply(params, IDS).pooled, expected) < TOLERANCE
    np.testing.assert_array_equal(end_positions(jnp.asarray(IDS), 2), [5, 12, 7])
    np.testing.assert_array_equal(end_positions(jnp.asarray(IDS), VOCAB - 1), [5, 12, 7])


def test_clip_skip(plain, parity):
    theirs, apply, params, cfg = plain
    got, expected = apply(params, IDS), run_torch(theirs, IDS)
    for skip in range(cfg.layers + 1):  # diffusers' rule: the states, then the final norm again
        states = expected.hidden_states[-(skip + 1)]
        with torch.no_grad():
            normed = theirs.final_layer_norm(states)
        assert parity.error(context(params, cfg, got, skip), normed) < TOLERANCE
        raw = context(params, cfg, got, skip, final_norm=False)
        assert parity.error(raw, states) < TOLERANCE
    with pytest.raises(ValueError, match="has 3 layers"):
        context(params, cfg, got, 4)


def test_later_tokens_do_not_reach_earlier_ones(plain):
    _, apply, params, _ = plain
    changed = IDS.copy()
    changed[:, 6] = 7
    before, after = apply(params, IDS).last, apply(params, changed).last
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert np.abs(before[:, 6:] - after[:, 6:]).max() > 0.01


def test_half_precision(plain, parity):
    _, apply, params, cfg = plain
    half = trees.cast(params, jnp.float16)
    full = jax.tree.map(lambda x: x.astype(np.float32), half)
    # Stored in half precision, computed in fp32: the same numbers as from fp32 storage.
    np.testing.assert_array_equal(apply(half, IDS).last, apply(full, IDS).last)
    low = jax.jit(TextEncoder(cfg, jnp.bfloat16).apply)({"params": half}, IDS)
    assert low.last.dtype == jnp.bfloat16
    worst = parity.error(low.last.astype(jnp.float32), apply(full, IDS).last)
    assert worst < 0.03  # measured: 0.0086


def test_short_prompts_are_taken_and_long_ones_refused(plain):
    _, apply, params, _ = plain
    short = apply(params, IDS[:, :6]).last
    np.testing.assert_allclose(short, apply(params, IDS).last[:, :6], atol=2e-6)
    with pytest.raises(ValueError, match="14 tokens are more than this text encoder's 13"):
        apply(params, np.zeros((1, 14), np.int32))
    wrong = TextEncoder(TextConfig(VOCAB, LENGTH, 32, 1, 4, 48, "quickgelu"))
    with pytest.raises(ValueError, match="did you mean 'quick_gelu'"):
        jax.eval_shape(wrong.init, jax.random.key(0), IDS)


@pytest.mark.parametrize("which", ["plain", "projecting"])
def test_export_is_the_source_again(which, parity, request):
    theirs, _, params, cfg = request.getfixturevalue(which)
    ((_, rules),) = table.find_text(theirs.state_dict(), projection=cfg.projection is not None)
    parity.same_state(export(params, rules), theirs.state_dict())


def wild_layouts(state):
    """The same weights under other names: (a whole file's names, the prefix inside it)."""
    body = {name.removeprefix("text_model."): x for name, x in state.items()}
    inner = {f"text_model.{name}": x for name, x in body.items() if "projection" not in name}
    buffer = {"text_model.embeddings.position_ids": torch.arange(LENGTH)[None]}
    projection = {"text_projection.weight": state["text_projection.weight"]}
    bare = {name: x for name, x in body.items() if "projection" not in name}
    yield {f"cond_stage_model.transformer.{k}": x for k, x in {**inner, **buffer}.items()}
    yield {f"conditioner.embedders.0.transformer.{k}": x for k, x in bare.items()}
    vision = {"vision_model.post_layernorm.bias": torch.zeros(2), "logit_scale": torch.ones([])}
    other = {"visual_projection.weight": torch.zeros(2, 2), **vision}
    yield {**inner, **buffer, **projection, **other}


def test_layouts_in_the_wild_convert_to_the_same(projecting, parity):
    theirs, _, params, _ = projecting
    expected = trees.flatten(params)
    for state in wild_layouts(theirs.state_dict()):
        projected = any("text_projection" in name for name in state)
        target = {
            name: x for name, x in expected.items() if projected or "text_projection" not in name
        }
        ((prefix, rules),) = table.find_text(state, projection=projected)
        got = parity.convert(Renamed(state, prefix), rules, trees.unflatten(target))
        got = trees.flatten(got)
        assert got.keys() == target.keys()
        for name in target:
            np.testing.assert_array_equal(got[name], target[name], err_msg=name)


def test_a_missing_layer_is_named(projecting, parity):
    theirs, _, params, _ = projecting
    state = dict(theirs.state_dict())
    del state["text_model.encoder.layers.1.mlp.fc1.weight"]
    ((_, rules),) = table.find_text(state)
    with pytest.raises(ConversionError, match="encoder/layers_1/mlp/fc1/kernel"):
        parity.convert(state, rules, params)
