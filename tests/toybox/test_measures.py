"""Each measure on true renders, and on clips that were spoilt in the one way that it is to see."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.toybox import masks, measures
from mv2_jax.toybox.renderer import frame_times, render_batch, render_mask
from mv2_jax.toybox.world import sample_world

SIZE, FRAMES = (64, 64), 6
# A ball, a star, a ring and a heart that move in four ways; none white, which snow half hides.
WORDS = np.array([[0, 0, 2, 1], [2, 2, 0, 2], [4, 4, 4, 5], [3, 6, 3, 6]], np.int32)


@cache
def render(things=(0, 2, 4, 3)):
    """The clips of WORDS with other things in the same places: worlds of the same keys."""
    keys = jax.random.split(jax.random.key(3), 4)
    words = WORDS.copy()
    words[:, 0] = things
    worlds = jax.vmap(sample_world)(keys, *jnp.asarray(words.T))
    clips = np.asarray(draw(worlds))
    return clips, worlds


@jax.jit
def draw(worlds):
    return render_batch(worlds, frame_times(FRAMES), SIZE)


@cache
def of_truth():
    clips, _ = render()
    return measures.measure(clips, clips[:, 0], WORDS)


def spoilt(clips):
    return measures.measure(clips.astype(np.float32), render()[0][:, 0], WORDS)


def test_masks_are_where_the_renderer_drew_the_thing():
    clips, worlds = render()
    drawn = jax.vmap(lambda world: render_mask(world, frame_times(FRAMES), SIZE))(worlds)
    seen = measures.track(clips, WORDS)
    true = np.asarray(drawn) > 0.5
    overlap = (seen.mask & true).sum((2, 3)) / (seen.mask | true).sum((2, 3))
    assert overlap.mean() > 0.93 and overlap.min() > 0.85
    middle = (true * (0.5 - (np.arange(64) + 0.5) / 64)[:, None]).sum((2, 3)) / true.sum((2, 3))
    assert np.abs(seen.y - middle).max() < 0.01


def test_true_renders_are_found_whole_and_kept():
    found = of_truth()
    assert (found["thing"] == 1).all()
    assert found["colour"].max() < 4 and found["shape"].max() < 0.08
    assert found["place"].max() == 0 and found["size"].max() == 0
    assert found["flicker"].max() < 5 and found["jerk"].max() < 4


def test_another_thing_of_the_same_colour_has_another_outline():
    other, _ = render((4, 0, 3, 2))
    changed = render()[0].copy()
    changed[:, 3:] = other[:, 3:]
    assert (spoilt(changed)["shape"] > of_truth()["shape"] + 0.02).all()


def test_a_drifting_colour_and_a_lost_one_are_seen():
    clips, worlds = render()
    drift = np.linspace(0, 0.16, FRAMES)[None, :, None, None, None] * np.array([-1, 1, -1.0])
    assert (spoilt(clips + drift)["colour"] > of_truth()["colour"] + 2).all()
    lost = clips.copy()
    lost[:, 3:] = np.asarray(draw(worlds._replace(x=worlds.x + 40)))[:, 3:]  # far outside
    assert np.allclose(spoilt(lost)["thing"], 0.5)


def test_a_thing_elsewhere_and_a_larger_one_than_in_the_picture_are_seen():
    clips, worlds = render()
    moved = np.asarray(draw(worlds._replace(x=worlds.x + 0.1)))
    found = measures.measure(moved, clips[:, 0], WORDS)
    # The ball begins at the edge, wherever the middle of its way is; the heart grows to fit.
    assert np.allclose(found["place"][1:], 5, atol=0.1) and found["size"].max() < 4
    larger = np.asarray(draw(worlds._replace(radius=1.2 * worlds.radius)))
    found = measures.measure(larger, clips[:, 0], WORDS)
    assert np.allclose(found["size"][:3], 20, atol=1) and found["place"].max() < 1


def test_a_second_thing_is_counted():
    clips, _ = render()
    mask = measures.track(clips, WORDS).mask
    # A half-size copy in the corner that is the scene's.
    small, cover = clips[:, :, ::2, ::2], mask[:, :, ::2, ::2, None]
    double = clips.copy()
    for at in ((slice(0, 32), slice(0, 32)), (slice(0, 32), slice(32, 64))):
        double[:, :, *at] = np.where(cover, small, double[:, :, *at])
    assert spoilt(double)["thing"].mean() < 0.5


def test_flicker_is_that_which_was_added():
    clips = 0.8 * render()[0]  # away from the ends, so that nothing is cut off
    still = np.repeat(clips[:, :1], FRAMES, axis=1)
    added = 8 / 127.5 * (-1.0) ** np.arange(FRAMES)[None, :, None, None, None]
    none = np.zeros((4, FRAMES, 64, 64), bool)
    assert np.allclose(measures.flicker(still, none), 0, atol=1e-6)
    assert np.allclose(measures.flicker(still + added, none), 16, atol=1e-3)
    assert np.isnan(measures.flicker(still[:, :2], none[:, :2])).all()


def test_frames_out_of_order_jerk():
    clips, _ = render()
    shuffled = clips[:, [0, 3, 1, 4, 2, 5]]
    moving = [0, 1]  # the ball to the right, the star upwards
    assert (spoilt(shuffled)["jerk"][moving] > 5 * of_truth()["jerk"][moving]).all()


def test_blur_and_noise_change_sharpness():
    clips, _ = render()
    soft = (clips + np.roll(clips, 1, 2) + np.roll(clips, 1, 3)) / 3
    rough = clips + np.random.default_rng(0).normal(0, 0.05, clips.shape)
    assert (measures.sharpness(soft) < 0.85 * of_truth()["sharpness"]).all()
    assert (measures.sharpness(rough) > 1.3 * of_truth()["sharpness"]).all()


def test_seeds_that_differ_spread_and_equal_ones_do_not():
    same = np.repeat(render()[0][:1, 0], 4, axis=0)
    assert all(value < 1e-6 for value in measures.spread(same, WORDS[0]).values())
    many = measures.truth(np.tile(WORDS[:1], (8, 1)), 1, SIZE)[:, 0]
    assert many.dtype == np.uint8
    found = measures.spread(many, WORDS[0])
    assert found["x"] > 3 and found["radius"] > 0.8


def test_what_shows_nothing_of_the_words_says_nothing():
    grey = np.zeros((4, FRAMES, *SIZE, 3), np.float32)
    found = spoilt(grey)
    assert (found["thing"] == 0).all() and np.isnan(found["colour"]).all()
    assert np.isnan(found["jerk"]).all() and (found["sharpness"] == 0).all()
    assert all(np.isnan(value) for value in measures.spread(grey[:, 0], WORDS[0]).values())
    with pytest.raises(ValueError, match="do not fit"):
        measures.measure(grey[0], grey[:, 0], WORDS)
    with pytest.raises(ValueError, match="pictures are"):
        masks.find(grey, [0], [0])
