"""What every comparison with torch needs: random weights, conversion, and the measure of error."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from quick import quick
from torch_weights import randomise

from mv2_jax.convert.engine import convert
from mv2_jax.convert.ops import as_numpy


def shapes(module, *args, method=None, **kwargs):
    """The abstract parameter tree of a Flax module, for example arguments."""
    init = lambda: module.init(jax.random.key(0), *args, method=method, **kwargs)  # noqa: E731
    return jax.eval_shape(init)["params"]


def error(ours, theirs):
    """Largest absolute difference over the largest magnitude; NaN and dead outputs fail."""
    ours, theirs = np.asarray(ours, np.float64), as_numpy(theirs).astype(np.float64)
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01, "an output that is all but constant proves nothing"
    worst = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert np.isfinite(worst)
    print(f"relative error {worst:.1e}")  # pytest -s shows what the bounds were chosen from
    return worst


def same_state(exported, state):
    """The export of a tree is the torch state dict that it came from, bit for bit."""
    assert exported.keys() == state.keys()
    for name, array in exported.items():
        np.testing.assert_array_equal(array, as_numpy(state[name]), err_msg=name)


def channels_last(tensor):
    """[..., C, H, W] in torch -> [..., H, W, C] in NumPy."""
    return np.moveaxis(as_numpy(tensor), -3, -1)


@pytest.fixture(scope="session")
def parity():
    """The functions of this file, `convert`, and `noise` for inputs."""

    def noise(*shape, seed=1):
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32)

    return SimpleNamespace(
        randomise=randomise,
        jit=quick,
        shapes=shapes,
        error=error,
        channels_last=channels_last,
        same_state=same_state,
        convert=convert,
        noise=noise,
    )
