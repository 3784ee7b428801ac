"""How much conditions count: parts of a chain, weights by frame, several ControlNets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from quick import quick

from mv2_jax import numbers, programs
from mv2_jax.config import ScheduleConfig
from mv2_jax.diffusion import guidance, samplers
from mv2_jax.errors import InputError
from mv2_jax.params import flatten as params_by_path
from mv2_jax.params import unflatten
from mv2_jax.stages import chain, controls
from mv2_jax.stages import stage as stages
from mv2_jax.stages.conditions import Context

NETWORKS = {**tiny.NETWORKS, "control_2": tiny.CONTROL}
SHAPE = dataclasses.replace(tiny.KEYFRAMES, conditions=("text", "image", "control", "control_2"))
CLIP = stages.build("i2v", SHAPE, NETWORKS, tiny.VAE.factor)
REFINED = dataclasses.replace(CLIP, name="v2v")
FRAMES, RNG = 3, np.random.default_rng(0)


def numbered(stage="i2v", **changes):
    return numbers.changed(stage, numbers.STAGES[stage](), changes)


def inputs(cfg=CLIP, batch=2, **changes):
    given = RNG.uniform(-1, 1, (batch, *cfg.stage.size, 3)).astype(np.float32)
    ids = np.tile(np.arange(20, dtype=np.int32), (batch, 1))
    weights = controls.inputs(cfg, numbered(**changes), 4, batch=batch)
    return {"ids": ids, "negative": ids[:, ::-1], "image": given, **weights}


@pytest.fixture(scope="module")
def params():
    return tiny.random(jax.eval_shape(lambda key: stages.init(CLIP, key), jax.random.key(0)), 3)


@pytest.mark.parametrize("steps, first", [(4, 0), (25, 0), (25, 18), (7, 6), (3, 3)])
@pytest.mark.parametrize("span", [(0, 1), (0.2, 1), (0, 0.55), (0.3, 0.31), (0.5, 0.5), (0, 0)])
def test_a_part_of_a_chain_is_diffusers(steps, first, span):
    """Its loop keeps a ControlNet at step i of n unless i / n < start or (i + 1) / n > end."""
    cfg = dataclasses.replace(CLIP.stage, schedule=ScheduleConfig(spacing="leading"))
    cfg = dataclasses.replace(CLIP, stage=cfg)
    low, high = controls.between(cfg, steps, first, *map(float, span))
    t = np.asarray(chain.program(cfg.stage, steps)[1].t)[first:]
    kept = [1.0 - float(i / len(t) < span[0] or (i + 1) / len(t) > span[1]) for i in range(len(t))]
    np.testing.assert_array_equal((low <= t) & (t <= high), kept)


def context(params, cfg, raw, t, **more):
    """What a stage's conditions feed, of the conditioned row."""
    conditioning = stages.condition.__wrapped__(
        params, {**raw, **more}, cfg=cfg, rule=guidance.NONE
    )
    conditioning = jax.tree.map(lambda leaf: leaf[0], conditioning)
    batch, made = raw["image"].shape[0], Context()
    x = jnp.asarray(np.random.default_rng(1).standard_normal((batch, *cfg.latent_shape)))
    for each in cfg.conditions:
        made = each.feed(params, cfg, conditioning[each.name], x, jnp.full(batch, t), made)
    return made


FEED = quick(context, "cfg")


def close(found, expected, atol=2e-6):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=atol)


def test_several_controlnets_add_up(params):
    raw = inputs(control_scale="1,0")
    alone = stages.build("i2v", tiny.KEYFRAMES, tiny.NETWORKS, tiny.VAE.factor)
    one = FEED(params, alone, raw, 500.0).residuals
    close(FEED(params, CLIP, raw, 500.0).residuals, one)
    second = FEED(params, CLIP, {**raw, **scales(0, 1)}, 500.0).residuals
    assert max(np.abs(a - b).max() for a, b in zip(one[0], second[0])) > 0.05
    both = FEED(params, CLIP, {**raw, **scales(0.5, 2)}, 500.0).residuals
    close(both, jax.tree.map(lambda a, b: 0.5 * a + 2 * b, one, second), 1e-5)


def of_frame(residuals, frame):
    return jax.tree.map(lambda r: r.reshape(2, FRAMES, *r.shape[1:])[:, frame], residuals)


def scales(*values):
    names = ("control_scale", "control_2_scale")
    return {name: np.float32(value) for name, value in zip(names, values)}


def test_each_counts_in_its_part_of_the_chain(params):
    raw = inputs(control_start="0,0.5", control_end="0.5,1", image_start=0.5)
    times = chain.program(CLIP.stage, 4)[1].t
    for step, t in enumerate(times):
        late = step >= 2
        found = FEED(params, CLIP, raw, float(t))
        plain = {name: x for name, x in raw.items() if not name.endswith("between")}
        expected = FEED(params, CLIP, {**plain, **scales(1 - late, late)}, float(t))
        close(found.residuals, expected.residuals, 0)
        np.testing.assert_array_equal(found.image_scale, [late, late])


def test_weights_by_frame(params):
    raw = inputs(control_scale=0.5, control_frames="0:1,2:0;1:2", image_frames="1:0.25")
    np.testing.assert_allclose(raw["control_frames"], [1, 0.5, 0])
    np.testing.assert_allclose(raw["control_2_frames"], [2, 2, 2])
    found = FEED(params, CLIP, raw, 500.0)
    np.testing.assert_allclose(found.image_scale, np.full((2, FRAMES), 0.25))
    plain = {name: x for name, x in raw.items() if not name.endswith("_frames")}
    for frame, weight in enumerate(raw["control_frames"]):
        given = {**plain, **scales(0.5 * weight, 1.0)}
        expected = FEED(params, CLIP, given, 500.0).residuals
        close(of_frame(found.residuals, frame), of_frame(expected, frame))


def test_the_network_takes_weights_by_frame(params):
    """Each frame of a network without motion modules is as with its weight alone."""
    unet = dataclasses.replace(tiny.INFLATED, motion=None)
    cfg = dataclasses.replace(CLIP, stage=dataclasses.replace(SHAPE, unet=unet))
    predict = quick(one_step, "cfg")
    raw = inputs(cfg, image_frames="0:0,2:1", control_frames="0:1,2:3;")
    found = predict(params, cfg, raw)
    plain = {name: x for name, x in raw.items() if not name.endswith("_frames")}
    for frame in range(FRAMES):
        weights = {"image_scale": np.float32(frame / 2), **scales(1 + frame, 1)}
        alone = predict(params, cfg, {**plain, **weights})
        np.testing.assert_allclose(found[:, frame], alone[:, frame], atol=3e-6)
        if frame:
            assert np.abs(found[:, 0] - alone[:, 0]).max() > 1e-3


def one_step(params, cfg, raw):
    conditioning = stages.condition.__wrapped__(params, raw, cfg=cfg, rule=guidance.NONE)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 2, *cfg.latent_shape)))
    model = stages.in_windows(params, cfg, cfg.stage.frames)
    return model(x, jnp.full((1, 2), 500.0), conditioning)[0]


def test_each_keyframe_is_seen_by_its_own_frame(params):
    clip = RNG.uniform(-1, 1, (2, FRAMES, 32, 32, 3)).astype(np.float32)
    own = numbered("v2v", control_sees="keyframes,picture", strength=1.0)
    raw = {**inputs(), **controls.inputs(REFINED, own, 4, clip, 2)}
    np.testing.assert_array_equal(raw["control_image"], clip)
    assert "control_2_image" not in raw
    raw |= scales(1, 0)
    found = FEED(params, REFINED, raw, 500.0).residuals
    for frame in range(FRAMES):
        still = FEED(params, REFINED, {**raw, "control_image": clip[:, frame]}, 500.0).residuals
        close(of_frame(found, frame), of_frame(still, frame))


def test_windows_take_the_weights_and_pictures_of_their_frames(params):
    wide = dataclasses.replace(SHAPE, frames=5, overlap=1, blend="uniform")
    cfg = dataclasses.replace(CLIP, stage=wide)
    raw = inputs(cfg, image_frames="0:0,4:1", control_frames="0:0,4:2;0:1")
    raw["control_image"] = RNG.uniform(-1, 1, (2, 5, 32, 32, 3)).astype(np.float32)
    whole = quick(one_step, "cfg")(params, cfg, raw)
    parts = []
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 2, *cfg.latent_shape)))
    for begin in (0, 2):
        some = slice(begin, begin + 3)
        cut = {n: a[some] if n.endswith("_frames") else a for n, a in raw.items()}
        cut["control_image"] = raw["control_image"][:, some]
        conditioning = stages.condition.__wrapped__(params, cut, cfg=CLIP, rule=guidance.NONE)
        out = stages.predict(params, CLIP, x[:, :, some], jnp.full((1, 2), 500.0), conditioning)
        parts.append(np.asarray(out[0]))
    middle = (parts[0][:, 2:] + parts[1][:, :1]) / 2
    expected = np.concatenate([parts[0][:, :2], middle, parts[1][:, 1:]], axis=1)
    np.testing.assert_allclose(whole, expected, atol=1e-5)


@pytest.mark.parametrize("index", [1])
def test_windows_move_with_the_steps_of_a_chain(params, index):
    schedule = ScheduleConfig(prediction="x0", final_alpha_one=True)
    wide = dataclasses.replace(SHAPE, frames=5, overlap=1, context="looped", schedule=schedule)
    cfg = dataclasses.replace(CLIP, stage=wide)
    told = stages.condition(params, inputs(cfg), cfg=cfg, rule=guidance.NONE)
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, *cfg.latent_shape)))
    state = samplers.State(x, jnp.int32(index), (), None)
    static = {"cfg": cfg, "rule": guidance.NONE, "steps": 4}
    end = quick(chain.advance, *static, "k")(params, told, guidance.make(1), state, **static, k=1).x
    grid = chain.program(wide, 4)[1]
    t = jnp.full((1, 2), grid.t[index])
    x0 = stages.in_windows(params, cfg, 5, 4, index)(x[None], t, told)[0]
    eps = (x - grid.alpha[index] * x0) / grid.sigma[index]
    expected = grid.alpha_next[index] * x0 + grid.sigma_next[index] * eps
    np.testing.assert_allclose(end, expected, atol=1e-5)


def test_motion_scale_is_a_factor_of_the_keys_over_time(params):
    """As a number, and by frame: keys of a frame that is scaled by 0 are those of no frame."""
    predict, raw = quick(one_step, "cfg"), inputs()
    trees_of = params_by_path(params)
    larger = unflatten(
        {
            path: 1.4 * leaf if "motion" in path and "/to_k/" in path else leaf
            for path, leaf in trees_of.items()
        }
    )
    scaled = {**raw, "motion_scale": np.float32([1.4, 1.4])}
    expected = predict(larger, CLIP, {**raw, "motion_scale": np.float32([1, 1])})
    np.testing.assert_allclose(predict(params, CLIP, scaled), expected, atol=3e-6)
    by_frame = {**raw, "motion_scale": np.full((2, 3), 1.4, np.float32)}
    np.testing.assert_allclose(predict(params, CLIP, by_frame), expected, atol=3e-6)
    by_frame["motion_scale"] = np.float32([[1.4, 1.4, 0.2]] * 2)
    assert np.abs(predict(params, CLIP, by_frame) - expected).max() > 1e-3
    own = numbered(motion_scale=2, motion_frames="0:1,2:0")
    found = controls.inputs(CLIP, own, 4, batch=2)["motion_scale"]
    np.testing.assert_array_equal(found, [[2, 1, 0]] * 2)
    assert controls.inputs(CLIP, numbered(), 4, batch=2)["motion_scale"].tolist() == [1, 1]


def test_looks_add_their_tokens(params):
    raw = inputs()
    looks = RNG.uniform(-1, 1, (2, 3, 24, 40, 3)).astype(np.float32)
    image = CLIP.condition("image")
    conditioning, nothing = image.encode(params, CLIP, {**raw, "looks": looks})
    first, none = image.encode(params, CLIP, raw)
    parts = [first["tokens"]]
    parts += [image.encode(params, CLIP, {"image": looks[:, i]})[0]["tokens"] for i in range(3)]
    np.testing.assert_allclose(conditioning["tokens"], jnp.concatenate(parts, 1), atol=1e-5)
    np.testing.assert_allclose(nothing["tokens"], jnp.tile(none["tokens"], (1, 4, 1)), atol=0)


def test_numbers_change_no_shape():
    plain = controls.inputs(CLIP, numbered(), 4)
    other = controls.inputs(
        CLIP, numbered(control_scale=(0.3, 2), control_end="0.5,0.6", image_start=0.9), 4
    )
    assert programs.signature(plain) == programs.signature(other)
    first = controls.inputs(CLIP, numbered(control_sees="first"), 4)
    np.testing.assert_array_equal(first["control_2_frames"], [1, 0, 0])
    curve = controls.inputs(CLIP, numbered(control_frames="0:0.1,2:4"), 4)
    assert programs.signature(first) == programs.signature(curve)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"control_scale": (1, 2, 3)}, "control_scale has 3 values; these weights have 2 Contr"),
        ({"control_start": 0.6, "control_end": 0.5}, "control_start is 0.6, after control_end"),
        ({"control_frames": "0:1;0:1;0:1"}, "control_frames has 3 values"),
        ({"control_frames": "a:1"}, "i2v control_frames takes FRAME:WEIGHT"),
        ({"control_frames": "0:9"}, "i2v control_frames is 9; it goes from 0 to 4"),
        ({"control_sees": "frist"}, "unknown 'frist'; did you mean 'first'"),
        ({"control_sees": "keyframes"}, "i2v control_sees: unknown 'keyframes'"),
        ({"control_scale": "1,x"}, "i2v control_scale takes a number, not 'x'"),
    ],
)
def test_what_cannot_be_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        controls.inputs(CLIP, numbered(**changes), 4)
