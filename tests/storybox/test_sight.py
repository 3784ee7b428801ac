import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.storybox import fit, renderer, sight, split
from mv2_jax.storybox.vocabulary import NOTHING, THINGS
from mv2_jax.storybox.world import ABOVE, BEHIND, LEFT_OF, RIGHT_OF, poses, sample_world


def placed(x, y, relation, front=0, sure=0.01, second=3):
    """A fit of one picture with the first thing at the origin, and its words."""
    numbers = {name: np.zeros(1) for name in fit.Fit._fields}
    numbers |= {"x": np.array([[0.0, x]]), "y": np.array([[0.0, y]])}
    numbers |= {"front": np.array([front]), "sure": np.array([sure])}
    words = np.zeros((1, 9), int)
    words[0, 6:8] = second, relation
    return fit.Fit(**numbers), words


@pytest.mark.parametrize(
    ("x", "y", "relation", "front", "right"),
    [
        (-0.8, 0.0, LEFT_OF, 0, True),
        (0.8, 0.0, LEFT_OF, 0, False),
        (0.8, 0.0, RIGHT_OF, 0, True),
        (0.0, 0.7, ABOVE, 0, True),
        (0.0, -0.7, ABOVE, 0, False),
        (0.3, 0.1, BEHIND, 0, True),
        (0.3, 0.1, BEHIND, 1, False),  # it is in front
    ],
)
def test_relations_are_read_off_places_and_order(x, y, relation, front, right):
    numbers = sight._related(*placed(x, y, relation, front))
    inside = [
        sight.BOUNDS[name].low <= value[0] <= sight.BOUNDS[name].high
        for name, value in numbers.items()
        if not np.isnan(value[0])
    ]
    assert all(inside) == right


def test_of_one_thing_nothing_is_said_of_another():
    numbers = sight._related(*placed(0.0, 0.0, LEFT_OF, second=NOTHING))
    assert all(np.isnan(value[0]) for value in numbers.values())


def test_a_drawing_is_found_where_it_was_laid():
    """The convolutions' cost is the error of laying each drawing at each place."""
    rng = np.random.default_rng(0)
    plain = rng.random((9, 11, 3), np.float32)
    drawn = rng.random((3, 5, 5, 4), np.float32)
    drawn[..., :3] *= drawn[..., 3:]
    row, column, kind = 4, 6, 1
    picture = plain.copy()
    under = picture[row - 2 : row + 3, column - 2 : column + 3]
    under[:] = under * (1 - drawn[kind, ..., 3:]) + drawn[kind, ..., :3]
    options = jnp.asarray([[0.2, 0.0, 1.0], [0.3, 0.5, -1.0], [0.4, 0.0, 1.0]])
    found = fit._place(
        jnp.asarray(picture - plain), jnp.asarray(plain), jnp.asarray(drawn), options
    )
    x, y = (2 * column + 1 - 11) / 9, 1 - (2 * row + 1) / 9
    np.testing.assert_allclose(found, [x, y, 0.3, 0.5, -1.0], rtol=1e-5)


@pytest.mark.long
def test_true_frames_are_right_and_others_are_not():
    words = np.concatenate([split.test_words("acts", 3), split.test_words("pairs", 3)])
    keys = jax.random.split(jax.random.key(7), len(words))
    worlds = jax.vmap(sample_world)(keys, jnp.asarray(words))
    time, size = jnp.asarray([0.4]), (128, 128)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], worlds) for i in range(len(words))]
    frames = np.stack([np.asarray(renderer.render(world, time, size))[0] for world in each])
    seen = sight.look(frames, words)
    assert seen.right["all"].sum() >= 5
    true = jax.vmap(lambda world: poses(world, 0.4))(worlds)
    off = np.hypot(seen.found.x - true.x, seen.found.y - true.y)[:, 0]
    assert np.median(off) < 0.005
    asked = words.copy()
    asked[:, 0] = (words[:, 0] + 7) % len(THINGS)
    assert sight.look(frames, asked).right["thing"].sum() <= 1
