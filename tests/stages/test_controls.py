"""What users set beside numbers: weighed and long prompts, clip-skip, motion windows, FreeInit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.config import (
    ControlNetConfig,
    ImageProjectionConfig,
    MotionConfig,
    ScheduleConfig,
    StageConfig,
    TextConfig,
    UNetConfig,
    VisionConfig,
)
from mv2_jax.diffusion import guidance, keys, samplers
from mv2_jax.models import clip_text
from mv2_jax.stages import chain, i2v, stage
from mv2_jax.stages.conditions import text as prompts
from mv2_jax.text.emphasis import Marked

TEXT = TextConfig(
    vocab_size=20, max_length=6, width=8, layers=2, heads=2, mlp_width=16, eos_token_id=3
)
SPATIAL = UNetConfig(
    channels=(8,), layers_per_block=1, transformers=(1,), heads=(2,), context_width=8, norm_groups=4
)
UNET = dataclasses.replace(
    SPATIAL, motion=MotionConfig(max_frames=3, heads=2, norm_groups=4), image_tokens=True
)
STAGE = StageConfig(UNET, ScheduleConfig(kind="linear"), (24, 40), frames=3, steps=2)
NETWORKS = {
    "text_encoder": TEXT,
    "image_encoder": VisionConfig(16, 8, 8, 2, 2, 16, projection=None),
    "image_attn": ImageProjectionConfig("resampler", 8, 8, 8, 2, 1, 2, 4),
    "control": ControlNetConfig(SPATIAL, (8, 8), 4),
}
CLIP = stage.build("i2v", STAGE, NETWORKS, 8)
EMPTY = np.array([[2, 3, 0, 0, 0, 0]], np.int32)
ROWS = np.array([[[2, 5, 6, 7, 8, 3], [2, 9, 3, 0, 0, 0]]], np.int32)  # one prompt of two rows


def staged(**changes):
    return dataclasses.replace(CLIP, stage=dataclasses.replace(STAGE, **changes))


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    tree = jax.eval_shape(lambda key: stage.init(CLIP, key), jax.random.key(0))
    return jax.tree.map(lambda x: 0.2 * rng.standard_normal(x.shape, np.float32), tree)


@pytest.fixture(scope="module")
def encode(params):
    return jax.jit(lambda ids: CLIP.condition("text").prompt(params, CLIP, ids).text)


def test_a_long_prompt_is_its_rows_end_to_end(encode):
    together = encode(Marked(ROWS, np.ones((1, 2, 6), np.float32), EMPTY))
    assert together.shape == (1, 12, 8)
    each = encode(jnp.asarray(ROWS[0]))
    np.testing.assert_allclose(together[0].reshape(2, 6, 8), each, atol=1e-6)


def test_weights_go_from_the_empty_prompt_through_the_plain_one(encode):
    rows = ROWS[:, :1]
    plain, none = encode(jnp.asarray(rows[:, 0])), encode(jnp.asarray(EMPTY))
    weights = np.array([1, 1, 0, 2.5, -1, 1], np.float32)
    found = encode(Marked(rows, weights[None, None], EMPTY))
    w = weights[None, :, None]
    np.testing.assert_allclose(found, none * (1 - w) + plain * w, atol=2e-6)


def test_a_weight_of_one_changes_no_bit():
    states = jax.random.normal(jax.random.key(0), (9, 6, 8))
    marked = Marked(jnp.asarray(ROWS[:, :1]), jnp.ones((1, 1, 6)), jnp.asarray(EMPTY))
    found, pooled = prompts.states(lambda ids: (states[: ids.shape[0]], None), marked)
    assert (found == states[:1]).all() and pooled is None


def test_pooled_text_is_of_the_first_row():
    marked = Marked(
        jnp.asarray(np.repeat(ROWS, 3, 0)), jnp.full((3, 2, 6), 2.0), jnp.asarray(EMPTY)
    )
    rows = jnp.arange(7.0)[:, None]
    _, pooled = prompts.states(lambda ids: (jnp.zeros((7, 6, 8)), rows), marked)
    np.testing.assert_array_equal(pooled, [[0.0], [2.0], [4.0]])


def test_two_batches_of_prompts_are_one(encode):
    weights = np.full((1, 2, 6), 1.5, np.float32)
    first, second = Marked(ROWS, weights, EMPTY), Marked(ROWS[:, ::-1], weights, EMPTY)
    both = encode(prompts.together(first, second))
    np.testing.assert_allclose(both, jnp.concatenate([encode(first), encode(second)]), atol=1e-6)


@pytest.mark.parametrize("skip", [0, 1])
def test_clip_skip_is_the_stages(params, skip):
    ids = jnp.asarray(ROWS[0])
    output = clip_text.TextEncoder(TEXT).apply({"params": params["text_encoder"]}, ids)
    expected = clip_text.context(params["text_encoder"], TEXT, output, skip)
    found = CLIP.condition("text").prompt(params, staged(clip_skip=skip), ids).text
    np.testing.assert_allclose(found, expected, atol=1e-6)


def conditions(params, cfg, rule=None):
    image = jnp.linspace(-1, 1, 24 * 40 * 3).reshape(1, 24, 40, 3)
    inputs = {"ids": jnp.asarray(ROWS[:, 0]), "negative": jnp.asarray(EMPTY), "image": image}
    return stage.condition(params, inputs, cfg=cfg, rule=rule or cfg.rule)


def test_a_pooled_controlnet_steers_only_what_is_told_the_prompt(params):
    """diffusers runs such a one on the conditional rows alone (its guess mode)."""
    control = dataclasses.replace(NETWORKS["control"], global_pool=True)
    pooled = stage.build("i2v", STAGE, {**NETWORKS, "control": control}, 8)
    conditioning = {
        cfg: jax.jit(conditions, static_argnums=1)(params, cfg) for cfg in (CLIP, pooled)
    }
    np.testing.assert_array_equal(conditioning[CLIP]["control"]["scale"][:, 0], [0, 1, 1])
    np.testing.assert_array_equal(conditioning[pooled]["control"]["scale"][:, 0], [0, 0, 1])


def test_a_clip_that_fits_its_window_runs_the_plain_program(params):
    """The same program, to the letter, is the same result, bit for bit."""
    given, scales = jax.eval_shape(lambda: conditions(params, CLIP)), guidance.make(3.0)
    state = samplers.State(jnp.zeros((1, 3, 3, 5, 4)), jnp.int32(0), (), keys.seeds([0]))

    def text(**changes):
        cfg = staged(**changes)
        static = {"cfg": cfg, "rule": cfg.rule, "steps": 2, "k": 1}
        lowered = chain.advance.lower(params, given, scales, state, **static)
        return lowered.as_text()

    assert text() == text(window=3, overlap=2) == text(window=7, overlap=1)
    assert text() != text(window=2, overlap=1)


def test_a_long_clip_is_the_blend_of_its_windows(params):
    """Five frames of motion modules that know three: one step's x0 from the windows' outputs."""
    cfg = staged(
        frames=5,
        overlap=1,
        steps=1,
        blend="uniform",
        schedule=ScheduleConfig(prediction="x0", spacing="trailing", final_alpha_one=True),
    )
    given, one_way = conditions(params, cfg, guidance.NONE), guidance.make(1.0, 1.0)
    key = keys.seeds([4])
    z = jnp.ones((1, 3, 5, 4))
    state = i2v.start(key, z, np.float32(1), cfg=cfg, steps=1)
    static = {"cfg": cfg, "rule": guidance.NONE, "steps": 1}
    end = chain.advance(params, given, one_way, state, **static).x
    assert state.x.shape == end.shape == (1, 5, 3, 5, 4)
    t = jnp.asarray([[999.0]])
    parts = [stage.predict(params, cfg, state.x[None, :, i : i + 3], t, given)[0] for i in (0, 2)]
    middle = (parts[0][:, 2:] + parts[1][:, :1]) / 2
    expected = jnp.concatenate([parts[0][:, :2], middle, parts[1][:, 1:]], axis=1)
    np.testing.assert_allclose(end, expected, atol=2e-5)


def test_free_init_begins_again_with_new_noise_and_its_own_slow_part():
    key, z = keys.seeds([5, 6]), jax.random.normal(jax.random.key(0), (2, 3, 3, 5, 4))
    first, second = (chain.again(key, z, jnp.int32(k), cfg=CLIP, steps=2) for k in (0, 1))
    alone = chain.again(key[1:], z[1:], jnp.int32(0), cfg=CLIP, steps=2)
    np.testing.assert_allclose(first.x[1], alone.x[0], atol=1e-6)
    assert int(first.index) == 0 and np.abs(first.x - second.x).max() > 0.1
    # The mean over frames and plane is the slowest part: that of z at the first timestep's noise.
    _, grid = samplers.get("ddim")(), samplers.get("ddim")().grid(STAGE.schedule, 2)
    eps = keys.normal(keys.fold(key, "i2v noise"), (3, 3, 5, 4))
    back = (grid.alpha[0] * z + grid.sigma[0] * eps).mean((1, 2, 3))
    np.testing.assert_allclose(first.x.mean((1, 2, 3)), back, atol=1e-6)
    np.testing.assert_allclose(second.x.mean((1, 2, 3)), back, atol=1e-6)
