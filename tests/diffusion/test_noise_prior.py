import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.config import ScheduleConfig
from mv2_jax.diffusion import noise_prior, prediction, samplers, schedules

LINEAR = ScheduleConfig(kind="linear", spacing="linspace")
GRIDS = [
    schedules.ddim_grid(LINEAR, 25),
    schedules.euler_grid(LINEAR, 25),
    schedules.euler_grid(ScheduleConfig(), 25),
]
EPS = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 2))
Z = jax.random.normal(jax.random.key(1), (2, 4, 5, 2))


@pytest.mark.parametrize("form", noise_prior.FORMS)
@pytest.mark.parametrize("grid", GRIDS)
def test_no_strength_is_plain_noise_bit_for_bit(grid, form):
    initial = jax.jit(lambda lam, z: noise_prior.initial(grid, EPS, z, lam, form))
    plain = np.asarray(jax.jit(lambda: noise_prior.plain(grid, EPS))())
    assert (np.asarray(initial(0.0, Z)).view(np.uint32) == plain.view(np.uint32)).all()
    both = initial(jnp.asarray([0.0, 1.0]), Z)  # one strength per sample
    assert (both[0] == plain[0]).all() and (both[1] != plain[1]).all()
    assert initial._cache_size() == 2  # one for each of lam's shapes, none for its values
    initial(0.7, Z)
    assert initial._cache_size() == 2


def test_plain_noise_of_ddim_is_the_noise_itself():
    assert (noise_prior.plain(GRIDS[0], EPS) == EPS).all()


def test_the_default_form_is_a_still_clip_noised_to_the_first_step():
    grid = GRIDS[0]
    still = jnp.broadcast_to(Z[:, None], EPS.shape)
    np.testing.assert_allclose(
        noise_prior.initial(grid, EPS, Z), samplers.renoise(grid, 0, still, EPS), atol=1e-6
    )
    # The facts' formula and its a, 0.0397 at timestep 999.
    a = np.float32(np.sqrt(schedules.alphas_cumprod(LINEAR)[999]))
    assert abs(a - 0.0397) < 5e-5
    expected = 0.5 * a * still + np.sqrt(1 - a * a) * EPS
    np.testing.assert_allclose(noise_prior.initial(grid, EPS, Z, 0.5), expected, atol=1e-6)
    # One latent per frame does as well as one for all.
    assert (noise_prior.initial(grid, EPS, still) == noise_prior.initial(grid, EPS, Z)).all()


def test_sigma_space_is_the_same_start_over_alpha():
    grid = schedules.euler_grid(LINEAR, 25)
    y = noise_prior.sigma_space(EPS, Z, grid.sigma[0] / grid.alpha[0], 0.8)
    np.testing.assert_allclose(grid.alpha[0] * y, noise_prior.initial(grid, EPS, Z, 0.8), atol=1e-6)


def test_the_literal_form_adds_to_plain_noise():
    shifted = noise_prior.initial(GRIDS[0], EPS, Z, 0.1, "literal")
    np.testing.assert_allclose(
        shifted - EPS, jnp.broadcast_to(0.1 * Z[:, None], EPS.shape), atol=1e-6
    )


def test_zero_terminal_snr_leaves_no_room_for_the_default_form():
    grid = schedules.ddim_grid(dataclasses.replace(LINEAR, zero_terminal_snr=True), 25)
    assert (noise_prior.initial(grid, EPS, Z) == EPS).all()


def test_the_prior_moves_what_a_still_world_becomes():
    """Why it is there: where clips are N(z, I) still, the start's own mean is a * z."""
    grid = GRIDS[0]
    x = noise_prior.initial(grid, EPS, Z)
    seen = prediction.to_x0("eps", EPS, x, grid.alpha[0], grid.sigma[0])
    np.testing.assert_allclose(seen, jnp.broadcast_to(Z[:, None], EPS.shape), atol=2e-5)


def test_misfits_are_explained():
    with pytest.raises(ValueError, match="did you mean 'signal'"):
        noise_prior.initial(GRIDS[0], EPS, Z, 1.0, "signall")
    with pytest.raises(ValueError, match=r"latent of \(2, 4, 4, 2\) does not fit noise"):
        noise_prior.initial(GRIDS[0], EPS, Z[:, :, :4])
