import hashlib
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mv2_jax.storybox import atlas, renderer, world
from mv2_jax.storybox.vocabulary import CATALOGUE, KINDS, PROPS, THINGS
from mv2_jax.storybox.world import sample_world

SIZE = (40, 48)
TIMES = renderer.frame_times(8)
PLAIN = {"thing": "fox", "motion": "hopping", "second": "nothing"}


def words(**said):
    said = {**PLAIN, **said}
    return [known.index(said[kind]) if kind in said else 0 for kind, known in KINDS.items()]


def batch(rows, seed=0):
    worlds = [sample_world(jax.random.key(seed), jnp.asarray(row)) for row in rows]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *worlds)


def clip(*rows, seed=0):
    """Clips [B, T, H, W, 3], one by one: all by one program, which takes seconds to compile."""
    worlds = [sample_world(jax.random.key(seed), jnp.asarray(row)) for row in rows]
    return np.stack([np.asarray(renderer.render(each, TIMES, SIZE)) for each in worlds])


def cover(*rows):
    """The cover of both things, drawn alone, [B, T, 2, H, W]."""
    worlds = [sample_world(jax.random.key(0), jnp.asarray(row)) for row in rows]
    return np.stack([np.asarray(renderer.render_covers(each, TIMES, SIZE)) for each in worlds])


def track(cover):
    """Centre x and y (y up, half heights) and area of covers [..., H, W]."""
    height, width = cover.shape[-2:]
    rows, columns = np.mgrid[:height, :width]
    area = cover.sum(axis=(-2, -1))
    x = (cover * (2 * columns + 1 - width)).sum(axis=(-2, -1)) / area / height
    y = (cover * (height - 1 - 2 * rows)).sum(axis=(-2, -1)) / area / height
    return x, y, area


@pytest.mark.slow
def test_shape_range_and_a_batch_equals_its_worlds_alone():
    rows = [words(), words(second="rocket", relation="behind", weather="rain", hour="night")]
    worlds = batch(rows)
    video = np.asarray(renderer.render_batch(worlds, TIMES, SIZE))
    assert video.shape == (2, 8, *SIZE, 3)
    assert video.dtype == np.float32
    assert -1 <= video.min() < video.max() <= 1
    alone = [renderer.render(type(worlds)(*row), TIMES, SIZE) for row in zip(*worlds)]
    np.testing.assert_allclose(video, np.stack(alone), atol=2e-5)


def test_motions_do_what_they_are_called():
    covers = cover(*(words(motion=name) for name in KINDS["motion"]))
    x, y, area = track(covers[:, :, 0])
    named = {name: i for i, name in enumerate(KINDS["motion"])}
    for name in ("flying", "driving", "swimming", "rolling", "panning"):
        step = np.diff(x[named[name]])
        assert (step > 0).all() or (step < 0).all(), name
        assert abs(step.sum()) > 0.4, name
    for name in ("hopping", "growing", "falling", "zooming"):
        assert np.ptp(x[named[name]]) < 0.1, name
    assert np.ptp(y[named["hopping"]]) > 0.15
    assert (np.diff(y[named["falling"]]) < 0).all()
    for name in ("growing", "zooming"):
        assert (np.diff(area[named[name]]) > 0).all(), name
        assert area[named[name], -1] > 1.8 * area[named[name], 0]
    assert area[named["flying"]].std() < 0.03 * area[named["flying"]].mean()
    assert y[named["flying"]].min() > y[named["driving"]].max()


def test_relations_hold_in_every_frame():
    said = {"second": "cat", "motion": "panning"}
    covers = cover(*(words(relation=name, **said) for name in KINDS["relation"]))
    x, y, _ = track(covers)
    left, right, behind, above = range(4)
    assert (x[left, :, 1] < x[left, :, 0] - 0.5).all()
    assert (x[right, :, 1] > x[right, :, 0] + 0.5).all()
    assert (y[above, :, 1] > y[above, :, 0] + 0.4).all()
    both = covers[behind].min(axis=1).sum(axis=(1, 2))
    assert (both > 0.05 * covers[behind, :, 1].sum(axis=(1, 2))).all()


def test_what_is_behind_is_hidden():
    rows = [words(second=name, relation="behind") for name in ("bear", "panda")]
    video = clip(*rows)
    inside = cover(rows[0])[0, :, 0] > 0.99
    # The fox's own pixels hide all of either.
    changed = np.abs(video[0] - video[1]).max(axis=-1) > 0.05
    assert inside.sum() > 100
    assert changed.sum() > 100
    assert not (changed & inside).any()


@pytest.mark.parametrize("kind", ["style", "scene", "hour", "weather"])
def test_every_word_is_seen(kind):
    frames = clip(*(words(**{kind: name}) for name in KINDS[kind]))[:, 0]
    for one, other in itertools.combinations(frames, 2):
        assert np.abs(one - other).mean() > 0.004


@pytest.mark.slow
def test_a_small_picture_is_a_large_one_made_smaller():
    made = batch([words(style="flat", scene="town", weather="fog", second="cat")])
    small = np.asarray(renderer.render_batch(made, TIMES[3:4], SIZE))[0, 0]
    large = renderer.render_batch(made, TIMES[3:4], tuple(4 * side for side in SIZE))[0, 0]
    shrunk = jax.image.resize(large, (*SIZE, 3), "linear", antialias=True)
    assert np.sqrt(np.square(small - np.asarray(shrunk)).mean()) < 0.06


def test_drawings_are_sampled_as_pillow_resizes_them():
    """Upright and at a quarter of its size a drawing is what Pillow's area average makes of it."""
    said = atlas.facts()
    whole = Image.open(atlas.FOLDER / "atlas.webp").convert("RGBa")
    side, row = said["side"], THINGS.index("panda")
    left, top = row % said["columns"] * side, row // said["columns"] * side
    tile = whole.crop((left, top, left + side, top + side))
    wanted = np.asarray(tile.resize((32, 32), Image.Resampling.BOX), np.float32) / 255
    at = (np.arange(32) + 0.5) / 16 - 1
    texels = atlas.texels()[row]
    got = jax.jit(atlas.sample)(texels, at[None], -at[:, None], 1 / 16)
    np.testing.assert_allclose(got, wanted, atol=0.012)


def test_the_atlas_names_its_drawings_their_packages_and_licences():
    said = atlas.facts()
    assert said["names"] == [*THINGS, *PROPS]
    assert said["icons"] == [*(thing.icon for thing in CATALOGUE), *PROPS]
    licences = {style: facts["licence"] for style, facts in said["styles"].items()}
    assert licences == {"rounded": "Apache-2.0", "flat": "MIT"}
    held = {path.name: path for path in atlas.FOLDER.iterdir()}
    assert {"LICENSE-Apache-2.0", "LICENSE-MIT", "SOURCE.md"} <= held.keys()
    assert sum(path.stat().st_size for path in held.values()) < 3e6
    drawings = atlas.load().texels
    assert drawings.shape[0] == 2 * (120 + len(PROPS))
    prints = {hashlib.sha256(each.tobytes()).hexdigest() for each in drawings}
    assert len(prints) == len(drawings)
    assert json.dumps(said).count("OpenMoji") == 0


@pytest.mark.slow
def test_gradients_reach_a_pose():
    """What the judge fits by: the picture's derivative by a place is its finite difference."""
    made = jax.tree.map(lambda leaf: leaf[0], batch([words(motion="driving")]))

    texels = atlas.texels()

    @jax.jit
    def total(x):
        size = SIZE
        now = world.poses(made, 0.5, size[1] / size[0])
        now = now._replace(x=now.x.at[0].add(x))
        plain = jnp.zeros((*size, 3))
        picture = renderer.compose(made, 0.5, now, plain, plain[..., 0], size, texels)[0]
        return jnp.sum(picture[:, : size[1] // 2])

    _, slope = jax.jvp(total, (0.003,), (1.0,))
    difference = (total(0.005) - total(0.001)) / 0.004
    assert float(slope) == pytest.approx(float(difference), rel=0.03)
