"""Windows over long clips: they cover it, weigh one in all, and leave short clips alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.diffusion import windows

CASES = [
    (1, 1, 0),
    (5, 8, 2),
    (8, 8, 2),
    (9, 8, 2),
    (26, 16, 12),
    (26, 16, 4),
    (33, 4, 3),
    (7, 2, 0),
]


@pytest.mark.parametrize("frames, window, overlap", CASES)
@pytest.mark.parametrize("kind", windows.KINDS)
def test_windows_cover_every_frame_and_weigh_one(frames, window, overlap, kind):
    at, share = (
        windows.starts(frames, window, overlap),
        windows.weights(frames, window, overlap, kind),
    )
    total, seen = np.zeros(frames), np.zeros(frames, int)
    for begin, weight in zip(at, share, strict=True):
        assert len(weight) == min(window, frames) and (weight > 0).all()
        total[begin : begin + len(weight)] += weight
        seen[begin : begin + len(weight)] += 1
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    assert (seen > 0).all() and at[-1] + share.shape[1] == frames
    assert (np.diff(at) <= window - overlap).all() and (np.diff(at) > 0).all()


def model(x, t, condition):
    """Looks at every frame of what it is given, as motion modules do."""
    return x * condition + jnp.sin(x).mean(1, keepdims=True) + t[:, None, None]


X = jax.random.normal(jax.random.key(0), (2, 9, 3))
T = jnp.asarray([100.0, 900.0])


@pytest.mark.parametrize("window", [9, 12])
def test_a_clip_that_fits_is_left_to_the_model(window):
    assert windows.over(model, 9, windows.Windows(window, 2)) is model


@pytest.mark.parametrize("kind", windows.KINDS)
def test_each_frame_is_the_weighted_mean_of_its_windows(kind):
    found = jax.jit(windows.over(model, 9, windows.Windows(4, 2, kind)))(X, T, 0.5)
    expected = np.zeros(X.shape)
    for begin, weight in zip(windows.starts(9, 4, 2), windows.weights(9, 4, 2, kind)):
        part = slice(begin, begin + 4)
        expected[:, part] += weight[None, :, None] * np.asarray(model(X[:, part], T, 0.5))
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_a_model_of_single_frames_does_not_notice():
    found = windows.over(lambda x, t, c: jnp.tanh(x), 9, windows.Windows(4, 3))(X, T, None)
    np.testing.assert_allclose(found, jnp.tanh(X), atol=1e-6)


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="windows of 4 frames cannot overlap by 4"):
        windows.starts(9, 4, 4)
    with pytest.raises(ValueError, match="did you mean 'uniform'"):
        windows.weights(9, 4, 2, "unifrom")


# First frames of windows at steps 0, 1, 2 ..., as AnimateDiff-Evolved (its commit d8d163c) gave
# them: by frames, window, overlap and schedule.
EVOLVED = {
    (24, 16, 4, "uniform"): [[0, 8], [8, 0], [6, 8, 0], [8, 0, 6], [3, 8, 0], [8, 0, 3]],
    (24, 16, 4, "looped"): [[0, 12], [12, 0], [6, 18], [18, 6], [3, 15], [15, 3]],
    (24, 16, 4, "closed"): [[0, 12], [12, 0], [6, 18], [18, 6], [3, 15], [15, 3]],
    (20, 8, 2, "uniform"): [[0, 6, 12], [10, 12, 0, 2], [5, 11, 12, 0], [12, 0, 1, 7]],
    (20, 8, 2, "looped"): [[0, 6, 12], [10, 16, 2], [5, 11, 17], [15, 1, 7]],
    (20, 8, 2, "closed"): [[0, 6, 12, 18], [10, 16, 2, 8], [5, 11, 17, 3], [15, 1, 7, 13]],
    (9, 4, 3, "uniform"): [[0, 1, 2, 3, 4, 5], [4, 5, 0], [2, 3, 4, 5, 0], [5, 0, 1, 2, 3]],
    (9, 4, 3, "closed"): [[0, 1, 2, 3, 4, 5, 6, 7, 8], [4, 5, 6, 7, 8, 0, 1, 2, 3]],
    (33, 16, 4, "uniform"): [[0, 12, 17], [16, 17, 0, 7], [8, 17, 0], [17, 0, 4, 16]],
    (33, 16, 4, "looped"): [[0, 12, 24], [16, 28, 7], [8, 20, 32], [25, 4, 16], [4, 16, 28]],
}


@pytest.mark.parametrize("case", EVOLVED)
def test_windows_lie_as_in_animatediff_evolved(case):
    for step, expected in enumerate(EVOLVED[case]):
        assert list(windows.moving_starts(*case, step)) == expected
    assert list(windows.starts(33, 16, 4)) == [0, 12, 17]  # its standard static


def test_moving_windows_reach_every_frame_and_weigh_one():
    for window, context in itertools.product((1, 2, 5, 16), ("uniform", "looped", "closed")):
        for frames, overlap in itertools.product((window + 1, 2 * window, 40), (0, window // 3)):
            shape = windows.Windows(window, overlap, "pyramid", context)
            for first, share in zip(*shape.over_steps(frames, 6)):
                total = np.zeros(frames)
                for begin, weight in zip(first, share):
                    np.add.at(total, (begin + np.arange(window)) % frames, weight)
                np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("kind, own", [("pyramid", [1, 2, 2, 1]), ("flat", [1, 1, 1, 1])])
@pytest.mark.parametrize("context", ["uniform", "looped", "closed"])
def test_windows_of_a_step_are_averaged(context, kind, own):
    """Its rule: outputs times weights are added, and divided by the sum of the weights."""
    shape, told = windows.Windows(4, 1, kind, context), jnp.linspace(1, 2, 9)

    @jax.jit
    def run(x, t, step):
        def some(condition, frames):
            return condition[frames][None, :, None]

        return windows.over(model, 9, shape, some=some, steps=5, step=step)(x, t, told)

    for step in range(5):
        added, weights = np.zeros(X.shape), np.zeros((1, 9, 1))
        for begin in windows.moving_starts(9, 4, 1, context, step):
            at = [(begin + k) % 9 for k in range(4)]
            weight = np.asarray(own, float)[None, :, None]
            made = model(X[:, at], T, told[jnp.asarray(at)][None, :, None])
            added[:, at] += weight * np.asarray(made)
            weights[:, at] += weight
        np.testing.assert_allclose(run(X, T, step), added / weights, atol=3e-5)


def test_a_looped_clip_knows_no_beginning():
    """Turned by some frames, it is the same clip, if windows of all steps lie alike on it."""
    shape = windows.Windows(4, 3, "pyramid", "closed")
    whole = windows.over(model, 9, shape, steps=1, step=0)
    turned = jnp.roll(whole(X, T, 0.5), 2, 1)
    np.testing.assert_allclose(whole(jnp.roll(X, 2, 1), T, 0.5), turned, atol=1e-5)


def test_unknown_windows_are_named():
    with pytest.raises(ValueError, match=r"unknown windows 'close'.*did you mean 'closed'"):
        windows.Windows(4, 1, "flat", "close").over_steps(9, 2)
