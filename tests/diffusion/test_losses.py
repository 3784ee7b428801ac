import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.config import ScheduleConfig
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import losses, prediction, process, schedules
from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.errors import InputError

ZERO = ScheduleConfig(zero_terminal_snr=True, prediction="v")
KEYS = named.per_sample(named.seed(3), 6)
# Few shapes, so that all tests share the same small compiled operations.
IMAGES, VIDEOS = (6, 4, 4, 2), (6, 3, 4, 4, 2)


def timesteps(keys, cfg=LossConfig()):
    """Of a schedule of a thousand."""
    return process.of(ZERO).at(losses.positions(keys, cfg)).t.astype(int)


@pytest.mark.parametrize("shape", [IMAGES, VIDEOS])
@pytest.mark.parametrize("kind", ("eps", "v", "x0"))
def test_the_true_output_has_no_loss(kind, shape):
    """The model is told x0 and answers exactly: images and videos, each kind, to rounding."""
    schedule = dataclasses.replace(ScheduleConfig(), prediction=kind)
    x0 = jax.random.normal(jax.random.key(0), shape)
    alpha, sigma = (jnp.asarray(a) for a in schedules.signal_and_noise(schedule))

    def model(x, t):
        i = t.astype(jnp.int32)
        return prediction.from_x0(kind, x0, x, alpha[i], sigma[i])

    loss, metrics = losses.diffusion_loss(model, x0, KEYS, schedule)
    assert loss.shape == () and loss < 1e-10
    assert metrics["mse"] == loss


def test_predicting_zero_costs_the_target_itself():
    """A closed form: with x0 = 0 the v target is alpha * eps, and its mean square is alpha^2."""
    x0 = jnp.zeros(IMAGES)
    t = timesteps(KEYS)
    loss, metrics = losses.diffusion_loss(lambda x, t: jnp.zeros_like(x), x0, KEYS, ZERO)
    energy = (named.normal(named.fold(KEYS, "noise"), IMAGES[1:]) ** 2).mean((1, 2, 3))
    assert abs(loss - (schedules.alphas_cumprod(ZERO)[t] * energy).mean()) < 1e-6
    noisy = np.asarray(t) >= 500
    halves = noisy.mean() * metrics["mse_noisy"] + (1 - noisy.mean()) * metrics["mse_clean"]
    assert abs(halves - loss) < 1e-6


def test_the_gradient_is_that_of_finite_differences():
    x0 = jax.random.normal(jax.random.key(1), IMAGES)
    cfg = LossConfig(weighting="min_snr")

    def loss(a):
        return losses.diffusion_loss(lambda x, t: a * x, x0, KEYS, ZERO, cfg)[0]

    # The loss is a parabola in a, so that central differences are exact but for rounding.
    slope = (loss(1.5) - loss(0.5)) / 1.0
    assert abs(jax.grad(loss)(1.0) - slope) < 1e-5 * abs(slope) + 1e-6


def test_a_sample_alone_has_the_loss_it_has_in_a_batch():
    x0 = jax.random.normal(jax.random.key(2), IMAGES)

    def loss(lo, hi):
        return losses.diffusion_loss(lambda x, t: 0.3 * x, x0[lo:hi], KEYS[lo:hi], ZERO)[0]

    alone = np.mean([loss(i, i + 1) for i in range(6)])
    assert abs(loss(0, 6) - alone) < 1e-6


@pytest.mark.parametrize("weighting", ("plain", "min_snr", "min_snr_floor", "snr"))
@pytest.mark.parametrize("kind", ("eps", "v", "x0"))
def test_weights_are_the_papers_and_finite(kind, weighting):
    alpha, sigma = (a.astype(np.float64) for a in schedules.signal_and_noise(ZERO))
    cfg = LossConfig(weighting=weighting)
    got = losses.weight(jnp.asarray(alpha), jnp.asarray(sigma), kind, cfg)
    assert np.isfinite(got).all()
    snr = (alpha / sigma) ** 2
    capped = np.minimum(snr + (weighting == "min_snr_floor"), 5.0)
    with np.errstate(invalid="ignore"):
        expected = {
            "eps": np.where(snr > 0, np.minimum(snr, 5.0) / snr, 1.0),
            "v": capped / (snr + 1),
            "x0": capped,
        }[kind]
    if weighting == "plain":
        expected = np.ones_like(snr)
    if weighting == "snr":  # the eps error, in which v errs by 1 / alpha and x0 by k
        expected = {"eps": np.ones_like(snr), "v": alpha**2, "x0": snr}[kind]
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-7)


def test_an_even_min_snr_weight_is_the_same_loss_in_every_kind():
    """The eps, v and x0 errors of one x0 estimate, weighed by min-SNR, are one number."""
    schedule = ScheduleConfig()
    alpha, sigma = (jnp.asarray(a) for a in schedules.signal_and_noise(schedule))
    x0 = jax.random.normal(jax.random.key(4), IMAGES)

    def loss(kind):
        def model(x, t):
            i = t.astype(jnp.int32)
            return prediction.from_x0(kind, 0.5 * x, x, alpha[i], sigma[i])

        cfg = LossConfig(weighting="min_snr")
        own = dataclasses.replace(schedule, prediction=kind)
        return losses.diffusion_loss(model, x0, KEYS, own, cfg)[0]

    np.testing.assert_allclose([loss("eps"), loss("v")], [loss("x0")] * 2, rtol=1e-4)


def test_masks_leave_out_frames_and_samples():
    error = jnp.arange(24, dtype=jnp.float32).reshape(2, 3, 2, 2)
    frames = jnp.asarray([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(losses.per_sample(error, frames), [1.5, 0.0])
    np.testing.assert_allclose(losses.per_sample(error), error.reshape(2, -1).mean(1))
    with pytest.raises(ValueError, match=r"mask of shape \(3,\) does not fit"):
        losses.per_sample(error, jnp.ones(3))

    x0 = jax.random.normal(jax.random.key(5), VIDEOS)

    def loss(x0, keys, mask):
        return losses.diffusion_loss(lambda x, t: x, x0, keys, ZERO, mask=mask)[0]

    only = jnp.asarray([0.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    assert abs(loss(x0, KEYS, only) - loss(x0[1:3], KEYS[1:3], None)) < 1e-6
    assert loss(x0, KEYS, jnp.zeros(6)) == 0


def test_timesteps_follow_their_distribution():
    batch = named.per_sample(named.seed(9), 8192)
    t = np.asarray(timesteps(batch))
    assert t.min() >= 0 and t.max() <= 999
    counts = np.histogram(t, bins=8, range=(0, 1000))[0]
    assert abs(counts - 1024).max() < 130  # four standard deviations of 30, and a little

    # The median of u is 1/2, and the shift takes it to s / (1 + s).
    for cfg in (LossConfig(shift=3.0), LossConfig(sampling="logit_normal", shift=3.0)):
        assert abs(np.median(timesteps(batch, cfg)) - 750) < 15
    narrow = LossConfig(sampling="logit_normal", scale=0.01)
    assert abs(np.asarray(timesteps(batch, narrow)) - 500).max() < 15


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (LossConfig(sampling="unifrom"), "did you mean 'uniform'"),
        (LossConfig(weighting="min_srn"), "did you mean 'min_snr'"),
        (LossConfig(shift=0.0), "shift must be positive"),
    ],
)
def test_unknown_words_name_the_nearest(cfg, message):
    x0 = jnp.zeros((6, 2, 2, 1))
    with pytest.raises(ValueError, match=message):
        losses.diffusion_loss(lambda x, t: x, x0, KEYS, ZERO, cfg)


def test_an_answer_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"answered \(6, 2, 2, 2\) to latents of \(6, 2, 2, 1\)"):
        wide = jnp.zeros((6, 2, 2, 2))
        losses.diffusion_loss(lambda x, t: wide, jnp.zeros((6, 2, 2, 1)), KEYS, ZERO)


@pytest.mark.parametrize("kind", ("eps", "v"))
def test_weights_over_diffusers_snr(kind):
    """As diffusers' training scripts have Min-SNR, and P2's formula, over its schedulers' SNR."""
    diffusers = pytest.importorskip("diffusers")
    import torch
    from diffusers.training_utils import compute_snr

    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    t = torch.arange(0, 1000, 37)
    snr = compute_snr(diffusers.DDPMScheduler(**settings), t).double().numpy()
    schedule = ScheduleConfig(kind="scaled_linear", beta_start=0.00085, beta_end=0.012)
    alpha, sigma = (a[t.numpy()] for a in schedules.signal_and_noise(schedule))
    of = {"eps": snr, "v": snr + 1}[kind]  # what the scripts divide by
    p2 = {"eps": 1 / (1 + snr), "v": snr / (1 + snr) ** 2}[kind]
    for weighting, wanted in (("min_snr", np.minimum(snr, 5.0) / of), ("p2", p2)):
        cfg = LossConfig(weighting=weighting)
        ours = losses.weight(jnp.float32(alpha), jnp.float32(sigma), kind, cfg)
        np.testing.assert_allclose(ours, wanted, rtol=3e-4)


@pytest.mark.parametrize("shape", [IMAGES, VIDEOS])
def test_a_noise_offset_is_one_number_a_sample_and_channel(shape):
    """As diffusers' scripts add `offset * randn(B, C, 1, 1)`; what is learnt is that noise."""
    offset, x0 = 0.3, jnp.zeros(shape)
    plain = np.asarray(losses.noise(KEYS, shape[1:]))
    moved = np.asarray(losses.noise(KEYS, shape[1:], offset)) - plain
    each = moved.reshape(shape[0], -1, shape[-1])
    np.testing.assert_allclose(each, each[:, :1].repeat(each.shape[1], 1), atol=1e-6)
    many = named.per_sample(named.seed(1), 4000)
    means = np.asarray(losses.noise(many, (1, 1, 2), offset) - losses.noise(many, (1, 1, 2)))
    assert abs(means.std() - offset) < 0.02 and abs(np.corrcoef(means[:, 0, 0].T)[0, 1]) < 0.05

    seen = []
    eps = ScheduleConfig(zero_terminal_snr=False, prediction="eps")
    sigma = jnp.asarray(schedules.signal_and_noise(eps)[1])

    def model(x, t):  # of latents that are 0, all is noise
        found = prediction.divide(x, prediction.expand(sigma[t.astype(int)], x.ndim))
        seen.append(found)
        return found

    loss, _ = losses.diffusion_loss(model, x0, KEYS, eps, LossConfig(noise_offset=offset))
    assert loss < 1e-10
    np.testing.assert_allclose(seen[0], plain + moved, atol=1e-4)


@pytest.mark.parametrize("ends", [ZERO, process.Flow()])
def test_a_noise_offset_is_refused_where_sampling_begins_at_noise_alone(ends):
    with pytest.raises(InputError, match="noise_offset does not go with a process that ends in"):
        losses.diffusion_loss(
            lambda x, t: x, jnp.zeros(IMAGES), KEYS, ends, LossConfig(noise_offset=0.1)
        )
    with pytest.raises(InputError, match="must be 0 or more"):
        losses.check_offset(LossConfig(noise_offset=-0.1), ends)


@pytest.mark.parametrize("u", [0.125, 0.875])
def test_the_error_at_a_position_is_that_of_the_noised_input_there(u):
    """A network that answers its input has, of the noise that the input holds, a known error."""
    x0 = jax.random.normal(jax.random.key(1), IMAGES)
    schedule = ScheduleConfig(prediction="eps")
    point = process.of(schedule).at(jnp.full(1, u))
    eps = losses.noise(KEYS, IMAGES[1:])
    wanted = jnp.mean((point.alpha[0] * x0 + point.sigma[0] * eps - eps) ** 2)
    found, _ = losses.diffusion_loss(lambda x, t: x, x0, KEYS, schedule, losses.At(jnp.float32(u)))
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
