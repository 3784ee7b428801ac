"""Shapes in signatures are checked where tests run: see shape_checker's SHAPED."""

import jax
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from shape_checker import SHAPED

from mv2_jax.diffusion import free_init
from mv2_jax.models.vq import Quantiser
from mv2_jax.stages import gaps


def test_every_module_that_says_shapes_is_checked():
    from test_layout import sources

    said = {name for name, path in sources().items() if "from jaxtyping import" in path.read_text()}
    assert said == set(SHAPED)


def test_a_shape_that_does_not_fit_is_refused():
    frames, new = np.zeros((2, 3, 5, 3), np.float32), np.zeros((2, 1, 3, 5, 3), np.float32)
    assert gaps.keep_stills(frames, frames, new).shape == new.shape
    with pytest.raises(TypeCheckError):
        gaps.keep_stills(frames, frames[:1], new)
    with pytest.raises(TypeCheckError):
        gaps.keep_stills(frames, frames, new.astype(np.int32))
    clip, gain = np.zeros((1, 2, 3, 3, 1), np.float32), np.ones((3, 3), np.float32)
    with pytest.raises(TypeCheckError):
        free_init.mixed(clip, clip, gain)


def test_a_network_is_checked_too():
    features = np.zeros((1, 2, 2, 2), np.float32)
    quantiser = Quantiser(4, 2)
    with pytest.raises(TypeCheckError):
        quantiser.init(jax.random.key(0), features[0])
