"""FreeInit: the filter against diffusers' on even sides, exact properties on any."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.config import ScheduleConfig
from mv2_jax.diffusion import free_init, noise_prior, samplers

EVEN, ODD = (4, 6, 8), (5, 7, 3)


def noise(seed, shape=EVEN, batch=2, channels=3):
    return jax.random.normal(jax.random.key(seed), (batch, *shape, channels))


def steady(x):
    """What never changes over time and space: the mean of each sample and channel."""
    return np.asarray(x).mean(free_init.AXES)


@pytest.mark.parametrize("kind", free_init.KINDS)
@pytest.mark.parametrize("spatial, temporal, order", [(0.25, 0.25, 4), (0.5, 0.2, 2)])
def test_mixing_equals_diffusers_on_even_sides(kind, spatial, temporal, order):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers.pipelines.free_init_utils import FreeInitMixin

    low, high = noise(0), noise(1)
    theirs = FreeInitMixin()
    gain = theirs._get_free_init_freq_filter((1, 3, *EVEN), "cpu", kind, order, spatial, temporal)
    first = [torch.from_numpy(np.array(x).transpose(0, 4, 1, 2, 3)) for x in (low, high)]
    expected = theirs._apply_freq_filter(*first, gain).numpy().transpose(0, 2, 3, 4, 1)
    mine = free_init.low_pass(EVEN, kind, spatial=spatial, temporal=temporal, order=order)
    np.testing.assert_allclose(free_init.mixed(low, high, mine), expected, atol=2e-6)


@pytest.mark.parametrize("shape", [EVEN, ODD, (1, 5, 5), (3, 1, 1)])
@pytest.mark.parametrize("kind", free_init.KINDS)
def test_the_steady_part_is_kept_whole_and_gains_are_even(shape, kind):
    gain = free_init.low_pass(shape, kind)
    assert gain.shape == shape and gain[0, 0, 0] == 1 and (gain >= 0).all()
    opposite = np.roll(np.flip(gain), 1, axis=(0, 1, 2))  # of frequency f, that of -f
    np.testing.assert_array_equal(gain, opposite)
    low, high = noise(0, shape), noise(1, shape)
    np.testing.assert_allclose(steady(free_init.mixed(low, high, gain)), steady(low), atol=2e-6)


def test_a_single_wave_is_scaled_by_its_own_gain():
    gain = free_init.low_pass(ODD, spatial=0.6, temporal=0.9)
    frames = np.cos(2 * np.pi * 2 * np.arange(5) / 5)
    wave = np.broadcast_to(frames[None, :, None, None, None], (1, *ODD, 1)).astype(np.float32)
    found = free_init.mixed(jnp.asarray(wave), jnp.zeros_like(wave), gain)
    assert 0.1 < gain[2, 0, 0] < 0.9
    np.testing.assert_allclose(found, gain[2, 0, 0] * wave, atol=1e-6)


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_a_restart_is_noised_to_the_first_sampled_timestep(name):
    """Not to timestep 999, and at the scale that this sampler starts from."""
    cfg = ScheduleConfig(kind="linear", spacing="leading")
    grid = samplers.get(name)().grid(cfg, 5)
    z, eps, fresh = noise(0, ODD), noise(1, ODD), noise(2, ODD)
    everything = np.ones(ODD, np.float32)
    back = grid.alpha[0] * z + grid.sigma[0] * eps
    assert grid.t[0] == 801
    np.testing.assert_allclose(free_init.restart(grid, z, eps, fresh, everything), back, atol=3e-6)
    nothing = free_init.low_pass(ODD, spatial=0.0)
    start = free_init.restart(grid, z, eps, fresh, nothing)
    np.testing.assert_allclose(start, noise_prior.plain(grid, fresh), atol=1e-6)


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="did you mean 'gaussian'"):
        free_init.low_pass(EVEN, "gausian")
    with pytest.raises(ValueError, match="temporal stop goes from 0 to 1, not 2"):
        free_init.low_pass(EVEN, temporal=2)
