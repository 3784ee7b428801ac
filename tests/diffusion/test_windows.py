"""Windows over long clips: they cover it, weigh one in all, and leave short clips alone."""

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
    assert windows.over(model, 9, window, 2) is model


@pytest.mark.parametrize("kind", windows.KINDS)
def test_each_frame_is_the_weighted_mean_of_its_windows(kind):
    found = jax.jit(windows.over(model, 9, 4, 2, kind))(X, T, 0.5)
    expected = np.zeros(X.shape)
    for begin, weight in zip(windows.starts(9, 4, 2), windows.weights(9, 4, 2, kind)):
        part = slice(begin, begin + 4)
        expected[:, part] += weight[None, :, None] * np.asarray(model(X[:, part], T, 0.5))
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_a_model_of_single_frames_does_not_notice():
    found = windows.over(lambda x, t, c: jnp.tanh(x), 9, 4, 3)(X, T, None)
    np.testing.assert_allclose(found, jnp.tanh(X), atol=1e-6)


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="windows of 4 frames cannot overlap by 4"):
        windows.starts(9, 4, 4)
    with pytest.raises(ValueError, match="did you mean 'uniform'"):
        windows.weights(9, 4, 2, "unifrom")
