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
from mv2_jax.stages import chain, i2v, stage, t2i, v2v

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
NETWORKS = {
    "text_encoder": TEXT,
    "image_encoder": VisionConfig(16, 8, 8, 2, 2, 16, projection=None),
    "image_attn": ImageProjectionConfig("resampler", 8, 8, 8, 2, 1, 2, 4),
    "control": ControlNetConfig(SPATIAL, (8, 8), 4),
}
UNET = dataclasses.replace(SPATIAL, motion=MOTION, image_tokens=True)
PICTURE = stage.build("t2i", StageConfig(SPATIAL, SCHEDULE, SIZE, steps=4), NETWORKS, 8)
CLIP = stage.build("i2v", StageConfig(UNET, SCHEDULE, SIZE, 3, steps=4), NETWORKS, 8)
REFINED = dataclasses.replace(CLIP, name="v2v")
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
    spatial = jax.jit(stage.init, static_argnums=0)(PICTURE, jax.random.key(1))
    held = {"spatial": shaken(spatial["spatial"], 5)}
    whole = stage.init(CLIP, jax.random.key(0), held)
    return {**whole, "text_encoder": spatial["text_encoder"]}


@pytest.fixture(scope="module")
def params(fresh):
    names = ("text_encoder", "spatial", "motion", "image_encoder", "image_attn", "control")
    return {name: shaken(fresh[name], seed) for seed, name in enumerate(names)}


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(3).uniform(-1, 1, (3, 30, 50, 3)), jnp.float32)


def inputs(image, rows, image_scale=1.0, control_scale=1.0):
    rows = slice(rows, rows + 1) if isinstance(rows, int) else rows
    scales = {"image_scale": np.float32(image_scale), "control_scale": np.float32(control_scale)}
    return {"ids": IDS[rows], "negative": NOTHING[rows], "image": image[rows], **scales}


def conditioning(params, *given, rule=guidance.NONE):
    """Of one row, leading axis B."""
    made = stage.condition(params, inputs(*given), cfg=CLIP, rule=rule)
    return jax.tree.map(lambda leaf: leaf[0], made)


def test_t2i_sample_of_a_batch_equals_the_sample_alone(params):
    each = keys.seeds([7, 8, 9])
    words = {"ids": IDS, "negative": NOTHING}
    batch = t2i.sample(params, PICTURE, words, each, SCALES)
    one = {name: ids[1:2] for name, ids in words.items()}
    alone = t2i.sample(params, PICTURE, one, each[1:2], SCALES)
    assert batch.shape == (3, 1, 3, 5, 4)
    np.testing.assert_allclose(batch[1], alone[0], rtol=0, atol=2e-5)
    assert np.abs(batch[1] - batch[0]).max() > 0.1


def test_guidance_and_seed_compile_nothing_new(params):
    words = {"ids": IDS, "negative": NOTHING}
    t2i.sample(params, PICTURE, words, keys.seeds([1, 2, 3]), SCALES)
    before = chain.advance._cache_size()
    t2i.sample(params, PICTURE, words, keys.seeds([4, 5, 6]), guidance.make(1.0, 0.3, 0.7))
    assert chain.advance._cache_size() == before


def test_i2v_sample_of_a_batch_equals_the_sample_alone(params, image):
    each = keys.seeds([7, 8, 9])
    z = jnp.asarray(np.random.default_rng(4).standard_normal((3, 3, 5, 4)), jnp.float32)
    batch = i2v.sample(params, CLIP, inputs(image, slice(0, 3)), z, each, SCALES, noise_prior=1.0)
    one = inputs(image, 2), z[2:], each[2:]
    alone = i2v.sample(params, CLIP, *one, SCALES, noise_prior=1.0)
    assert batch.shape == (3, 3, 3, 5, 4)
    np.testing.assert_allclose(batch[2], alone[0], rtol=0, atol=5e-5)


def test_a_fresh_video_network_is_the_picture_network_on_every_frame(fresh, image):
    """Motion, image tokens at scale 0 and a fresh ControlNet add nothing to the spatial UNet."""
    x = jnp.asarray(np.random.default_rng(6).standard_normal((1, 3, 3, 5, 4)), jnp.float32)
    t = jnp.asarray([400.0])
    last = conditioning(fresh, image, 0, 0.0)
    clip = stage.predict_one(fresh, CLIP, x, t, last)
    for frame in range(3):
        words = {"text": last["text"]}
        picture = stage.predict_one(fresh, PICTURE, x[:, frame, None], t, words)
        np.testing.assert_allclose(clip[:, frame], picture[:, 0], rtol=0, atol=2e-6)
    assert np.abs(clip).max() > 0.1


@pytest.mark.parametrize(
    "image_scale,control_scale,moves", [(0, 0, False), (1, 0, True), (0, 1, True)]
)
def test_the_reference_acts_through_its_two_ways_alone(
    params, image, image_scale, control_scale, moves
):
    x = jnp.asarray(np.random.default_rng(6).standard_normal((3, 3, 3, 5, 4)), jnp.float32)
    t = jnp.full((3,), 400.0)
    scales = (image_scale, control_scale)
    both = [conditioning(params, pictures, 0, *scales) for pictures in (image, image[::-1])]
    out = [np.asarray(stage.predict_one(params, CLIP, x[:1], t[:1], c)) for c in both]
    difference = np.abs(out[0] - out[1]).max()
    assert difference > 1e-3 if moves else difference == 0


@pytest.mark.parametrize(
    "name, withheld",
    [
        ("none", [""]),
        ("text", ["text", ""]),
        ("public", ["text image", ""]),
        ("apart", ["text image control", "text", ""]),
    ],
)
def test_each_row_of_a_rule_is_told_what_it_is_to_be(params, image, name, withheld):
    condition = stage.condition(params, inputs(image, 0), cfg=CLIP, rule=guidance.rule(name))
    away = conditioning(params, image, 0, rule=guidance.APART)
    towards = conditioning(params, image, 0)
    assert condition["control"]["shown"].shape[:2] == (len(withheld), 1)
    for row, roles in enumerate(withheld):
        for each in ("text", "image", "control"):
            wanted = away if each in roles.split() else towards
            found = jax.tree.leaves(condition[each])
            for mine, theirs in zip(found, jax.tree.leaves(wanted[each])):
                np.testing.assert_array_equal(mine[row], theirs)
    assert away["control"]["scale"] == 0 and towards["control"]["scale"] == 1
    assert np.abs(away["text"].text - towards["text"].text).max() > 0
    assert np.abs(away["image"]["tokens"] - towards["image"]["tokens"]).max() > 0


def test_v2v_at_strength_0_keeps_the_keyframes_and_at_1_forgets_them(params, image):
    rng = np.random.default_rng(8)
    z, other = (jnp.asarray(rng.standard_normal((1, 3, 3, 5, 4)), jnp.float32) for _ in range(2))
    condition, key = inputs(image, 0), keys.seeds([3])
    kept = v2v.sample(params, REFINED, condition, z, key, SCALES, strength=0.0)
    np.testing.assert_allclose(kept, z, rtol=0, atol=1e-6)
    before = chain.advance._cache_size()
    half = [
        v2v.sample(params, REFINED, condition, x, key, SCALES, strength=0.5) for x in (z, other)
    ]
    assert np.abs(half[0] - half[1]).max() > 1e-2
    assert chain.advance._cache_size() == before


def test_noise_prior_moves_the_start_towards_the_reference():
    each = keys.seeds([5])
    z = jnp.ones((1, 3, 5, 4))
    plain, prior = (i2v.start(each, z, np.float32(lam), cfg=CLIP, steps=4).x for lam in (0.0, 1.0))
    betas = np.linspace(0.00085, 0.012, 1000)
    a = np.sqrt(np.prod(1 - betas))  # the signal at t = 999
    expected = np.sqrt(1 - a * a) * np.asarray(plain) + a
    np.testing.assert_allclose(prior, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("frames", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_every_tree_learns_from_pictures_and_clips(params, image, frames):
    rng = np.random.default_rng(2)
    batch = {
        "latent": jnp.asarray(rng.standard_normal((3, frames, 3, 5, 4)), jnp.float32),
        "image": image[:, :24, :40],
        "ids": jnp.asarray(IDS),
        "null_ids": jnp.asarray(NOTHING[0]),
    }

    def value(params):
        rates = {"drop_text": 0.0, "drop_image": 0.0}
        return stage.loss(params, CLIP, batch, jax.random.key(3), rates=rates)

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
        lambda batch: stage.loss(
            params, CLIP, batch, jax.random.key(3), rates={"drop_text": 1.0, "drop_image": 1.0}
        )[0]
    )
    assert run(batch) == run(other)


def test_text_and_picture_are_dropped_independently_and_as_often_as_asked(params, image):
    many = {
        name: np.repeat(x[:1], 400, axis=0) for name, x in inputs(image, 0).items() if np.ndim(x)
    }
    batch = {**many, "negative": NOTHING[:1], "image": jnp.asarray(many["image"][:, :24, :40])}
    batch["latent"] = jnp.zeros((400, 1, 3, 5, 4))
    rates = {"drop_text": 0.5, "drop_image": 0.25}
    keyed = keys.per_sample(jax.random.key(0), 400)
    found = jax.jit(lambda batch: stage.drop(params, CLIP, batch, keyed, rates))(batch)
    towards = conditioning(params, image[:, :24, :40], 0)
    no_text = np.abs(found["text"].text - towards["text"].text).max((1, 2)) > 1e-4
    no_tokens = np.abs(found["image"]["tokens"] - towards["image"]["tokens"]).max((1, 2)) > 1e-4
    no_control = np.asarray(found["control"]["scale"]) == 0
    assert (no_tokens == no_control).all()  # one picture: both of it or neither
    assert abs(no_text.mean() - 0.5) < 0.1 and abs(no_control.mean() - 0.25) < 0.1
    assert 0 < (no_text & no_control).sum() < no_control.sum()  # independently
