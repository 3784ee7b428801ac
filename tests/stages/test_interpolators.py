"""Every interpolator behind one function; more views of a pair, and the same promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.config import EDSCConfig, RIFEConfig, VAEConfig
from mv2_jax.config_vfi import MeanVFIConfig
from mv2_jax.models.rife import RIFE
from mv2_jax.stages import interpolators, vfi, vfi_table
from mv2_jax.stages.vfi_table import Interpolator

CFG = RIFEConfig(widths=(8, 4), scales=(2, 1), pad_to=8)
TIMES = jnp.array([[0.25, 0.7]])


@pytest.fixture(scope="module")
def small():
    frame, times = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 1))
    shapes = jax.eval_shape(RIFE(CFG).init, jax.random.key(0), frame, frame, times)["params"]
    random = np.random.default_rng(7)
    return jax.tree.map(lambda x: (random.normal(size=x.shape) * 0.1).astype(np.float32), shapes)


def _pair():
    return np.random.default_rng(0).uniform(-1, 1, size=(2, 1, 11, 13, 3)).astype(np.float32)


def test_views_are_means_that_no_turn_changes(small):
    """With all eight, mirroring or reversing what goes in mirrors or reverses what comes out."""
    first, second = _pair()
    plain = interpolators.between(small, CFG, first, second, TIMES, views=8)
    turned = interpolators.between(small, CFG, second[:, ::-1], first[:, ::-1], 1 - TIMES, views=8)
    np.testing.assert_allclose(plain, turned[:, :, ::-1], atol=1e-5)
    one = vfi.between(small, CFG, first, second, TIMES)
    assert np.abs(plain - one).mean() > 1e-3

    upended = vfi.between(small, CFG, first[:, ::-1, ::-1], second[:, ::-1, ::-1], TIMES)
    two = interpolators.between(small, CFG, first, second, TIMES, views=2)
    np.testing.assert_allclose(two, (one + upended[:, :, ::-1, ::-1]) / 2, atol=1e-6)


def test_stills_stay_exact_in_every_view(small):
    first, _ = _pair()
    made = interpolators.between(small, CFG, first, first, TIMES, views=2)
    np.testing.assert_array_equal(made, np.repeat(first[:, None], 2, axis=1))


def test_what_is_unknown_is_named(small):
    with pytest.raises(ValueError, match="no interpolator has a VAEConfig; there are RIFEConfig"):
        vfi_table.of(VAEConfig())
    with pytest.raises(ValueError, match="from 1 to 8; got 9"):
        interpolators.between(small, CFG, *_pair(), TIMES, views=9)


def test_several_networks_at_once_are_their_mean(monkeypatch):
    def constant(params, cfg, first, second, times, dtype):
        return jnp.full((*times.shape, *first.shape[1:]), params["level"], dtype)

    monkeypatch.setitem(vfi_table.TABLE, "edsc", Interpolator(EDSCConfig, constant))
    cfg = MeanVFIConfig((EDSCConfig(), EDSCConfig(any_time=False)))
    params = {str(k): {"level": np.float32(level)} for k, level in enumerate((-0.5, 0.75))}
    first, second = _pair()
    made = interpolators.between(params, cfg, first, second, TIMES)
    np.testing.assert_allclose(made, np.full((1, 2, 11, 13, 3), 0.125), atol=1e-6)
    assert not cfg.any_time and vfi_table.shares(cfg)
    assert not vfi_table.shares(MeanVFIConfig((EDSCConfig(), CFG)))
    with pytest.raises(ValueError, match="power of two, not 3"):
        interpolators.interpolate(params, cfg, jnp.zeros((1, 2, 4, 4, 3)), 3)
    four = interpolators.interpolate(params, cfg, jnp.stack([first, second], axis=1), 4)
    np.testing.assert_allclose(four[:, 1:-1], np.full((1, 3, 11, 13, 3), 0.125), atol=1e-6)
    np.testing.assert_array_equal(four[:, ::4], np.stack([first, second], axis=1))
