import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.toybox import renderer
from mv2_jax.toybox.renderer import frame_times, render, render_batch, render_mask
from mv2_jax.toybox.vocabulary import COLOURS, MOTIONS, SCENES, THINGS
from mv2_jax.toybox.world import sample_world

SIZE = (48, 48)
TIMES = frame_times(8)


def world(seed=0, thing="ball", colour="red", scene="meadow", motion="bouncing"):
    return sample_world(
        jax.random.key(seed),
        THINGS.index(thing),
        COLOURS.index(colour),
        SCENES.index(scene),
        MOTIONS.index(motion),
    )


def every(kind, seed=0, **fixed):
    """A batch of worlds of one key that differ in one word only."""
    known = {"thing": THINGS, "colour": COLOURS, "scene": SCENES, "motion": MOTIONS}[kind]
    worlds = [world(seed, **{kind: word}, **fixed) for word in known]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *worlds)


def clip(worlds):
    return np.asarray(render_batch(worlds, TIMES, SIZE))


@pytest.fixture(scope="module")
def motions():
    """Centre x, y (pixels, y down) and area of the mask over time, per motion: [8, T]."""
    worlds = every("motion", seed=4, thing="heart")
    masks = np.asarray(jax.vmap(lambda w: render_mask(w, TIMES, SIZE))(worlds))
    area = masks.sum(axis=(2, 3))
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    x = (masks * columns).sum(axis=(2, 3)) / area
    y = (masks * rows).sum(axis=(2, 3)) / area
    return {name: (x[i], y[i], area[i]) for i, name in enumerate(MOTIONS)}, masks


def test_shape_range_and_determinism():
    video = render(world(), TIMES, (32, 40))
    assert video.shape == (8, 32, 40, 3)
    assert video.dtype == jnp.float32
    assert -1.0 <= float(video.min()) and float(video.max()) <= 1.0
    assert (np.asarray(video) == np.asarray(render(world(), TIMES, (32, 40)))).all()


def test_a_batch_equals_its_worlds_alone():
    worlds = every("thing")
    alone = [render(type(worlds)(*row), TIMES, SIZE) for row in zip(*worlds)]
    np.testing.assert_allclose(clip(worlds), np.stack(alone), atol=2e-5)


def test_pieces_equal_the_whole(monkeypatch):
    """On a CPU large batches are drawn a few frames at a time, the last piece smaller."""
    whole = np.asarray(render(world(), TIMES[:5], SIZE))
    monkeypatch.setattr(renderer, "_CPU_PIXELS", 2 * SIZE[0] * SIZE[1])
    anew = jax.jit(renderer.render_batch.__wrapped__, static_argnums=2)
    pieces = anew(jax.tree.map(lambda leaf: leaf[None], world()), TIMES[:5], SIZE)
    np.testing.assert_allclose(pieces[0], whole, atol=2e-5)


def test_resolutions_agree():
    small, large = (np.asarray(render(world(3), TIMES[:1], (s, s)))[0] for s in (48, 96))
    pooled = large.reshape(48, 2, 48, 2, 3).mean(axis=(1, 3))
    assert np.abs(pooled - small).mean() < 0.02


@pytest.mark.parametrize(("sign", "name"), [(-1, "moving left"), (1, "moving right")])
def test_sideways(motions, sign, name):
    x, y, area = motions[0][name]
    assert 0.33 * SIZE[1] < sign * (x[-1] - x[0]) < 0.47 * SIZE[1]
    assert np.ptp(y) < 0.5 and np.ptp(area) < 0.02 * area[0]


@pytest.mark.parametrize(("sign", "name"), [(-1, "rising"), (1, "falling")])
def test_up_and_down(motions, sign, name):
    x, y, area = motions[0][name]
    assert 0.33 * SIZE[0] < sign * (y[-1] - y[0]) < 0.47 * SIZE[0]
    assert np.ptp(x) < 0.5 and np.ptp(area) < 0.02 * area[0]


def test_bouncing_turns_at_the_ground_twice(motions):
    x, y, _ = motions[0]["bouncing"]
    steps = np.sign(np.diff(y))
    assert list(steps[:6]) == [1, 1, -1, -1, 1, 1]
    assert np.ptp(y) > 0.25 * SIZE[0] and np.ptp(x) < 0.5


def test_growing_and_shrinking_by_a_factor_of_two(motions):
    for name, first, last in (("growing", 0, -1), ("shrinking", -1, 0)):
        area = motions[0][name][2]
        assert 3.6 < area[last] / area[first] < 4.2


def test_spinning_stays_and_turns(motions):
    x, y, area = motions[0]["spinning"]
    # The middle of a heart's area is not where it turns about.
    assert np.ptp(x) < 3.5 and np.ptp(y) < 3.5 and np.ptp(area) < 0.05 * area[0]
    masks = motions[1][MOTIONS.index("spinning")]
    assert np.abs(masks[0] - masks[-1]).sum() > 0.2 * area[0]


def test_things_keep_inside_the_frame(motions):
    border = np.concatenate([motions[1][:, :, 0], motions[1][:, :, :, 0], motions[1][..., -1]], -1)
    assert border.mean() < 0.02


def test_spinning_shows_on_every_thing():
    """Also on what is round: the pattern turns."""
    worlds = every("thing", motion="spinning")
    masks = np.asarray(jax.vmap(lambda w: render_mask(w, TIMES, SIZE))(worlds))
    video = clip(worlds)
    change = np.abs(video[:, 1] - video[:, 0]).mean(axis=-1)
    share = (change * masks[:, 0]).sum(axis=(1, 2)) / masks[:, 0].sum(axis=(1, 2))
    assert share.min() > 0.05, dict(zip(THINGS, share))


@pytest.mark.parametrize("scene", SCENES)
def test_colours_are_far_apart_on_every_scene(scene):
    worlds = every("colour", thing="ball", scene=scene)
    masks = np.asarray(jax.vmap(lambda w: render_mask(w, TIMES[:1], SIZE))(worlds))[:, 0, ..., None]
    mean = (clip(worlds)[:, 0] * masks).sum(axis=(1, 2)) / masks.sum(axis=(1, 2))
    apart = np.linalg.norm(mean[:, None] - mean[None], axis=-1) + 9 * np.eye(len(COLOURS))
    assert apart.min() > 0.35


def test_scenes_differ():
    video = clip(every("scene"))[:, 0]
    apart = np.abs(video[:, None] - video[None]).mean(axis=(2, 3, 4)) + 9 * np.eye(len(SCENES))
    assert apart.min() > 0.12


def test_one_word_changes_nothing_else():
    red, blue = (world(5, colour=colour) for colour in ("red", "blue"))
    same = [bool((a == b).all()) for a, b in zip(red, blue)]
    assert same.count(False) == 1
    outside = np.asarray(render_mask(red, TIMES, SIZE)) == 0
    difference = np.abs(np.asarray(render(red, TIMES, SIZE) - render(blue, TIMES, SIZE)))
    assert difference[outside].max() < 1e-6
