"""The judge that fits: true renders pass, damaged ones do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.toybox import damage, fit, sight
from mv2_jax.toybox.renderer import placed
from mv2_jax.toybox.vocabulary import MOTIONS, SIZES
from mv2_jax.toybox.world import SPINNING, pose, sample_world

SIZE, TIMES = (64, 64), np.linspace(0, 1, 8)


EVERY = np.array([[thing, 0, 0, motion] for thing in range(SIZES[0]) for motion in range(SIZES[3])])


@pytest.fixture(scope="module")
def found():
    """What a perfect fit would find of clips of `EVERY` thing and motion."""

    @jax.jit
    def places(keys, words):
        worlds = jax.vmap(lambda key, w: sample_world(key, *w))(keys, words)
        return jax.vmap(lambda w: jax.vmap(lambda t: placed(pose(w, t), SIZE))(TIMES))(worlds)

    now = places(jax.random.split(jax.random.key(3), len(EVERY)), jnp.asarray(EVERY))
    zero = np.zeros(now.x.shape)
    return fit.Fit(*map(np.asarray, (now.x, now.y, now.radius, now.angle)), *[zero] * 9)


def inside(numbers):
    return {
        name: (values >= sight.BOUNDS[name].low) & (values <= sight.BOUNDS[name].high)
        for name, values in numbers.items()
    }


def speaks(words):
    """Where each number of motion says something."""
    spins = words[:, 3] == SPINNING
    every = np.ones(len(words), bool)
    return {"path": every, "drift": every, "pace": ~spins, "turning": spins}


def test_a_true_way_is_right_for_every_motion(found):
    for name, right in inside(sight.way(found, EVERY, TIMES)).items():
        assert (right == speaks(EVERY)[name]).all(), name


def test_another_motions_way_is_wrong(found):
    for by in range(1, len(MOTIONS)):
        asked = EVERY.copy()
        asked[:, 3] = (asked[:, 3] + by) % len(MOTIONS)
        right = [inside_ | ~speaks(asked)[name] for name, inside_ in
                 inside(sight.way(found, asked, TIMES)).items()]  # fmt: skip
        assert not np.logical_and.reduce(right).any()


def test_a_star_may_be_found_a_fifth_of_a_turn_on_and_a_heart_may_not(found):
    rows = [2 * SIZES[3] + SPINNING, 3 * SIZES[3] + SPINNING]
    few = jax.tree.map(lambda leaf: leaf[rows], found)
    jumps = few.angle + 2 * np.pi / 5 * np.array([0, 1, 0, 2, 1, 0, 3, 1])
    numbers = sight.way(few._replace(angle=jumps), EVERY[rows], TIMES)
    assert numbers["turning"][0] > 0.99 and numbers["turning"][1] < sight.BOUNDS["turning"].low


def test_score_is_nought_where_all_is_right_and_falls_with_what_is_beyond():
    names = {name: np.array([bound.high, bound.high]) for name, bound in sight.BOUNDS.items()}
    names["overlap"] = np.array([1.0, 0.9])
    names["path"] = np.array([np.nan, 99.0])
    found = sight.score(sight.Sight({}, names, {}))
    low = sight.BOUNDS["overlap"].low
    assert found[0] == 0 and np.isclose(found[1], -3 - (low - 0.9) / (1 - low))


def test_shapes_are_looked_at():
    with pytest.raises(ValueError, match=r"\[2, 8, 8, 3\] and words \[2, 4\]"):
        sight.judge(np.zeros((2, 8, 8, 3)), np.zeros((2, 4)))


@pytest.mark.parametrize("name", ["bitten", pytest.param("ghosted", marks=pytest.mark.slow)])
def test_a_damage_changes_what_it_says_and_keeps_the_size(name):
    sort = (damage.TUNING | damage.HELD_OUT)[name]
    video, words = damage.damaged(sort, 2, 4, (24, 24), seed=1)
    again, _ = damage.damaged(sort, 2, 4, (24, 24), seed=1)
    true = damage.damaged(sort._replace(spoil=lambda c, rng: c.video), 2, 4, (24, 24), seed=1)[0]
    assert video.shape == (2, 4, 24, 24, 3) and (video == again).all()
    assert (video != true).reshape(2, -1).any(axis=1).all()
    for kind, some in sort.fixed.items():
        assert np.isin(words[:, ["thing", "colour", "scene", "motion"].index(kind)], some).all()


@pytest.fixture(scope="module")
def pictures():
    """True pictures in which every word occurs, and what a perfect fit would find."""
    count = 24
    fixed = [np.arange(count) * step % size for size, step in zip(SIZES, (1, 3, 5, 7))]
    worlds = jax.vmap(lambda key, *w: sample_world(key, *w))(
        jax.random.split(jax.random.key(8), count), *map(jnp.asarray, fixed)
    )
    return damage.drawn(worlds, jnp.asarray([0.3]), SIZE)


def to_uint8(video):
    return np.round(np.clip(video, 0, 1) * 255).astype(np.uint8)


@pytest.mark.slow
def test_true_pictures_are_right_alone_and_together(pictures):
    video, words = to_uint8(pictures.video), pictures.words
    seen = sight.judge(video, words)
    assert "motion" not in seen.right
    assert seen.right["all"].mean() > 0.95 and seen.right["texture"].mean() > 0.9
    # The fit finds what was drawn: with a fit that is left at its start this fails.
    found, place = seen.frames, pictures.place[:, 0]
    away = np.hypot(found["x"][:, 0] - place[:, 0], found["y"][:, 0] - place[:, 1])
    assert np.quantile(away, 0.9) < 0.006 and np.median(away) < 0.002
    for few in (1, 3):
        part = sight.judge(video[:few], words[:few])
        for name, values in part.numbers.items():
            np.testing.assert_allclose(values, seen.numbers[name][:few], atol=2e-3)


@pytest.mark.slow
def test_a_fit_that_is_off_is_wrong_about_all(pictures, monkeypatch):
    best = fit.fit

    def off(x, words):
        found, cost = best(x, words)
        return found._replace(x=found.x + 0.06), cost

    monkeypatch.setattr(fit, "fit", off)
    video, words = to_uint8(pictures.video)[:8], pictures.words[:8]
    assert not sight.judge(video, words).right["thing"].any()


@pytest.mark.slow
def test_other_words_are_wrong(pictures):
    video, words = to_uint8(pictures.video)[:8], pictures.words[:8]
    for kind, name in enumerate(("thing", "colour", "scene")):
        other = words.copy()
        other[:, kind] = (other[:, kind] + 1) % SIZES[kind]
        assert not sight.judge(video, other).right[name].any(), name


FEW = ("bitten", "frozen", "coarse", "torn")  # the others take minutes
SORTS = [
    pytest.param(name, marks=pytest.mark.slow if name in FEW else pytest.mark.long)
    for name in (*damage.TUNING, *damage.HELD_OUT)
]


@pytest.mark.parametrize("name", SORTS)
def test_each_damage_is_seen(name):
    sort = (damage.TUNING | damage.HELD_OUT)[name]
    # Of four frames a star that stands still looks like one that turns a fifth at a time.
    video, words = damage.damaged(sort, 2, 4 if sort.single else 8, SIZE, seed=11)
    assert not sight.judge(video, words).right[sort.takes].any()


@pytest.mark.long
def test_true_clips_of_every_thing_motion_and_scene_are_right():
    rows = np.array([[t, (t + m) % 8, (t + 2 * m) % 6, m] for t in range(6) for m in range(8)])
    worlds = jax.vmap(lambda key, w: sample_world(key, *w))(
        jax.random.split(jax.random.key(9), len(rows)), jnp.asarray(rows)
    )
    c = damage.drawn(worlds, jnp.linspace(0, 1, 6), (96, 96))
    seen = sight.judge(to_uint8(c.video), rows)
    for kind in sight.WORDS:
        assert seen.right[kind].sum() >= 47, kind


@pytest.mark.long
@pytest.mark.parametrize("size", [(97, 97), (65, 91), (200, 160)])
def test_odd_sizes_and_proportions(size):
    video, words = damage.damaged(damage.Sort(lambda c, rng: c.video, "", {}), 3, 4, size, seed=5)
    seen = sight.judge(video.astype(np.float32) / 127.5 - 1, words)
    assert seen.right["all"].all()
