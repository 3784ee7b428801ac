"""PSNR and SSIM: known values, and scikit-image's where it is installed."""

import numpy as np
import pytest

from mv2_jax.infer.metrics import psnr, sharpness, ssim


def _pictures(*shape):
    random = np.random.default_rng(0)
    first = random.integers(0, 256, size=shape, dtype=np.uint8)
    noise = random.integers(-30, 31, size=shape)
    return first, np.clip(first + noise, 0, 255).astype(np.uint8)


def test_known_values():
    black = np.zeros((12, 12, 3), np.uint8)
    assert psnr(black, black) == float("inf") and ssim(black, black) == 1
    assert psnr(black, black + np.uint8(255)) == 0
    # One flat picture against another: only the means differ, ssim = c1 / (span**2 + c1).
    assert ssim(black, black + np.uint8(255)) == pytest.approx(1e-4 / (1 + 1e-4))
    assert psnr(black / 255.0, black / 255.0 + 0.1, span=1.0) == pytest.approx(20)


def test_a_video_is_the_mean_of_its_frames():
    first, second = _pictures(3, 16, 21, 3)
    assert ssim(first, second) == pytest.approx(
        np.mean([ssim(a, b) for a, b in zip(first, second)])
    )
    assert ssim(first, second) < 0.99


def test_the_span_sets_the_scale():
    first, second = _pictures(16, 21, 3)
    wide = [x.astype(np.float32) / 127.5 - 1 for x in (first, second)]
    assert psnr(*wide, span=2) == pytest.approx(psnr(first, second), abs=1e-4)


def test_equal_to_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    first, second = _pictures(37, 29, 3)
    theirs = metrics.structural_similarity(
        first,
        second,
        channel_axis=-1,
        gaussian_weights=True,
        use_sample_covariance=False,
        sigma=1.5,
    )
    assert ssim(first, second) == pytest.approx(theirs, abs=1e-9)
    assert psnr(first, second) == pytest.approx(
        metrics.peak_signal_noise_ratio(first, second), abs=1e-9
    )


@pytest.mark.parametrize("function", [psnr, ssim])
def test_bad_arguments_say_why(function):
    first, second = _pictures(16, 16, 3)
    with pytest.raises(ValueError, match="cannot compare"):
        function(first, second[:15])
    with pytest.raises(ValueError, match="cannot compare"):
        function(first, second.astype(np.float32))
    with pytest.raises(ValueError, match="span="):
        function(first / 255.0, second / 255.0)
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(first[:10], second[:10])


def test_sharpness_is_a_share_of_the_real_picture_s():
    first, _ = _pictures(16, 16, 3)
    soft = first // 2
    assert sharpness(first, first) == 1
    assert sharpness(soft, first) == pytest.approx(0.5, abs=0.01)
    assert sharpness(np.zeros_like(first), first) == 0
