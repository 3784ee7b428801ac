"""T2I, I2V and V2V on tiny networks with random weights: what conditions what, and invariances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax import params as trees
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
from mv2_jax.diffusion import guidance, keys
from mv2_jax.stages import i2v, t2i, v2v, video

SCHEDULE = ScheduleConfig(kind="linear", prediction="v", spacing="trailing", final_alpha_one=True)
SPATIAL = UNetConfig(
    in_channels=4,
    out_channels=4,
    channels=(8, 16),
    layers_per_block=1,
    transformers=(1, 1),
    heads=(2, 2),
    context_width=8,
    norm_groups=4,
)
MOTION = MotionConfig(max_frames=3, heads=2, norm_groups=4, attentions=1, mid_block=True)
TEXT = TextConfig(
    vocab_size=20, max_length=6, width=8, layers=1, heads=2, mlp_width=16, eos_token_id=3
)
SIZE = (24, 40)  # odd planes: 3 x 5 latents
PICTURE = t2i.Config(StageConfig(SPATIAL, SCHEDULE, SIZE, steps=4), TEXT, factor=8)
CLIP = video.Config(
    stage=StageConfig(
        dataclasses.replace(SPATIAL, motion=MOTION, image_tokens=True), SCHEDULE, SIZE, 3, steps=4
    ),
    text=TEXT,
    vision=VisionConfig(16, 8, 8, 2, 2, 16, projection=None),
    projection=ImageProjectionConfig("resampler", 8, 8, 8, 2, 1, 2, 4),
    control=ControlNetConfig(SPATIAL, (8, 8), 4),
    factor=8,
)
SCALES = guidance.make(3.0, 1.5)
IDS = np.array([[2, 5, 6, 3, 0, 0], [2, 7, 8, 9, 3, 0], [2, 11, 3, 0, 0, 0]], np.int32)
NOTHING = np.repeat(np.array([[2, 3, 0, 0, 0, 0]], np.int32), 3, axis=0)


def shaken(tree, seed):
    """Random values everywhere, the zero-initialised leaves included."""
    flat = trees.flatten(tree)
    rng = np.random.default_rng(seed)
    return trees.unflatten(
        {k: np.asarray(v) + 0.2 * rng.standard_normal(v.shape, np.float32) for k, v in flat.items()}
    )


@pytest.fixture(scope="module")
def fresh():
    spatial = jax.jit(t2i.init, static_argnums=0)(PICTURE, jax.random.key(1))
    whole = video.init(CLIP, jax.random.key(0), shaken(spatial["spatial"], 5))
    return {**whole, "text_encoder": spatial["text_encoder"]}


@pytest.fixture(scope="module")
def params(fresh):
    return {name: shaken(tree, seed) for seed, (name, tree) in enumerate(fresh.items())}


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(3).uniform(-1, 1, (3, 30, 50, 3)), jnp.float32)


def given(params, image, rows, image_scale=1.0, control_scale=1.0):
    scales = (np.float32(image_scale), np.float32(control_scale))
    rows = slice(rows, rows + 1) if isinstance(rows, int) else rows
    return video.condition(params, IDS[rows], NOTHING[rows], image[rows], *scales, cfg=CLIP)


def test_t2i_sample_of_a_batch_equals_the_sample_alone(params):
    each = keys.seeds([7, 8, 9])
    batch = t2i.sample(params, PICTURE, IDS, NOTHING, each, SCALES)
    alone = t2i.sample(params, PICTURE, IDS[1:2], NOTHING[1:2], each[1:2], SCALES)
    assert batch.shape == (3, 3, 5, 4)
    np.testing.assert_allclose(batch[1], alone[0], rtol=0, atol=2e-5)
    assert np.abs(batch[1] - batch[0]).max() > 0.1


def test_guidance_and_seed_compile_nothing_new(params):
    t2i.sample(params, PICTURE, IDS, NOTHING, keys.seeds([1, 2, 3]), SCALES)
    before = t2i.advance._cache_size()
    t2i.sample(params, PICTURE, IDS, NOTHING, keys.seeds([4, 5, 6]), guidance.make(1.0, 0.3, 0.7))
    assert t2i.advance._cache_size() == before


def test_i2v_sample_of_a_batch_equals_the_sample_alone(params, image):
    each = keys.seeds([7, 8, 9])
    z = jnp.asarray(np.random.default_rng(4).standard_normal((3, 3, 5, 4)), jnp.float32)
    batch = i2v.sample(params, CLIP, given(params, image, slice(0, 3)), z, each, SCALES)
    alone = i2v.sample(params, CLIP, given(params, image, 2), z[2:], each[2:], SCALES)
    assert batch.shape == (3, 3, 3, 5, 4)
    np.testing.assert_allclose(batch[2], alone[0], rtol=0, atol=5e-5)


def test_a_fresh_video_network_is_the_picture_network_on_every_frame(fresh, image):
    """Motion, image tokens at scale 0 and a fresh ControlNet add nothing to the spatial UNet."""
    x = jnp.asarray(np.random.default_rng(6).standard_normal((1, 3, 3, 5, 4)), jnp.float32)
    t = jnp.asarray([400.0])
    condition = given(fresh, image, 0, image_scale=0.0)
    last = jax.tree.map(lambda leaf: leaf[2:], condition)
    clip = video.predict(fresh, CLIP, x, t, last)
    for frame in range(3):
        picture = t2i.predict(fresh, PICTURE, x[:, frame], t, t2i.Prompt(last.text))
        np.testing.assert_allclose(clip[:, frame], picture, rtol=0, atol=2e-6)
    assert np.abs(clip).max() > 0.1


@pytest.mark.parametrize(
    "image_scale,control_scale,moves", [(0, 0, False), (1, 0, True), (0, 1, True)]
)
def test_the_reference_acts_through_its_two_ways_alone(
    params, image, image_scale, control_scale, moves
):
    x = jnp.asarray(np.random.default_rng(6).standard_normal((3, 3, 3, 5, 4)), jnp.float32)
    t = jnp.full((3,), 400.0)
    one = given(params, image, 0, image_scale, control_scale)
    other = given(params, image[::-1], 0, image_scale, control_scale)
    last = [jax.tree.map(lambda leaf: leaf[2:], c) for c in (one, other)]
    out = [np.asarray(video.predict(params, CLIP, x[:1], t[:1], c)) for c in last]
    difference = np.abs(out[0] - out[1]).max()
    assert difference > 1e-3 if moves else difference == 0


def test_the_three_ways_are_nothing_image_and_image_with_text(params, image):
    condition = given(params, image, 0)
    nothing, picture, both = (
        video.Condition(*(leaf[i] for leaf in jax.tree.leaves(condition))) for i in range(3)
    )
    assert nothing.control_scale == 0 and picture.control_scale == both.control_scale == 1
    np.testing.assert_array_equal(nothing.text, picture.text)
    assert np.abs(both.text - picture.text).max() > 0
    np.testing.assert_array_equal(picture.tokens, both.tokens)
    assert np.abs(nothing.tokens - picture.tokens).max() > 0


def test_v2v_at_strength_0_keeps_the_keyframes_and_at_1_forgets_them(params, image):
    rng = np.random.default_rng(8)
    z, other = (jnp.asarray(rng.standard_normal((1, 3, 3, 5, 4)), jnp.float32) for _ in range(2))
    condition, key = given(params, image, 0), keys.seeds([3])
    kept = v2v.sample(params, CLIP, condition, z, key, SCALES, strength=0.0)
    np.testing.assert_allclose(kept, z, rtol=0, atol=1e-6)
    before = v2v.advance._cache_size()
    half = [v2v.sample(params, CLIP, condition, x, key, SCALES, strength=0.5) for x in (z, other)]
    assert np.abs(half[0] - half[1]).max() > 1e-2
    assert v2v.advance._cache_size() == before


def test_noise_prior_moves_the_start_towards_the_reference():
    each = keys.seeds([5])
    z = jnp.ones((1, 3, 5, 4))
    plain, prior = (i2v.start(each, z, np.float32(lam), cfg=CLIP, steps=4).x for lam in (0.0, 1.0))
    betas = np.linspace(0.00085, 0.012, 1000)
    a = np.sqrt(np.prod(1 - betas))  # the signal at t = 999
    expected = np.sqrt(1 - a * a) * np.asarray(plain) + a
    np.testing.assert_allclose(prior, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("frames", [1, 3])
def test_every_tree_learns_from_pictures_and_clips(params, image, frames):
    rng = np.random.default_rng(2)
    batch = {
        "latent": jnp.asarray(rng.standard_normal((3, frames, 3, 5, 4)), jnp.float32),
        "image": image[:, :24, :40],
        "ids": jnp.asarray(IDS),
        "null_ids": jnp.asarray(NOTHING[0]),
    }

    def value(params):
        return video.loss(params, CLIP, batch, jax.random.key(3), drop_text=0.0, drop_image=0.0)

    (loss, metrics), grads = jax.jit(jax.value_and_grad(value, has_aux=True))(params)
    assert np.isfinite(loss) and {"mse", "mse_noisy", "mse_clean"} <= set(metrics)
    for name, tree in grads.items():
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree)) > 1e-6, name


def test_dropped_conditions_do_not_reach_the_loss(params, image):
    rng = np.random.default_rng(2)
    batch = {
        "latent": jnp.asarray(rng.standard_normal((3, 3, 3, 5, 4)), jnp.float32),
        "image": image[:, :24, :40],
        "ids": jnp.asarray(IDS),
        "null_ids": jnp.asarray(NOTHING[0]),
    }
    other = {**batch, "image": -batch["image"], "ids": jnp.asarray(IDS[::-1])}
    run = jax.jit(
        lambda batch: video.loss(
            params, CLIP, batch, jax.random.key(3), drop_text=1.0, drop_image=1.0
        )[0]
    )
    assert run(batch) == run(other)
