"""`mv2 bench vfi` on clips made here: what is left out is predicted, measured and printed."""

import jax
import numpy as np
import pytest

from mv2_jax import cli
from mv2_jax.config import RIFEConfig
from mv2_jax.convert import rife as converter
from mv2_jax.infer import bench_vfi, media, metrics


@pytest.fixture
def clip(tmp_path):
    """Seven frames of a ramp that moves evenly, then a cut to another picture."""
    y, x = np.mgrid[:48, :64]
    ramp = [np.stack((3 * x + 6 * k, 4 * y, 255 - 3 * x - 6 * k), -1) for k in range(7)]
    noise = np.random.default_rng(0).integers(0, 255, size=(6, 8, 3)).repeat(8, 0).repeat(8, 1)
    frames = np.stack([*ramp, noise, noise]).clip(0, 255).astype(np.uint8)
    media.write_video(tmp_path / "clip.mp4", frames, 10)
    return str(tmp_path / "clip.mp4")


def test_gaps_share_their_ends_and_cuts_are_left_out(clip):
    found = list(bench_vfi.gaps(clip, 2, None))
    assert len(found) == 3  # frames 0-2, 2-4, 4-6; the fourth has the cut
    np.testing.assert_array_equal(found[0][2], found[1][0])
    assert len(list(bench_vfi.gaps(clip, 3, None))) == 2
    assert len(list(bench_vfi.gaps(clip, 2, 1))) == 1


def test_the_command_prints_every_method(clip, capsys):
    assert cli.main(["bench", "vfi", clip, "--methods", "nearest,blend", "--times", "2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert "3 frames predicted" in " ".join(lines[0])
    scores = {words[0]: [float(word) for word in words[1:]] for words in lines[2:]}
    assert scores.keys() == {"nearest", "blend"}
    # A ramp in even motion is its neighbours' mean: only the codec's loss is left.
    assert scores["blend"][0] > 38 > 35 > scores["nearest"][0]


def test_dis_flow_follows_motion(clip):
    cv2 = pytest.importorskip("cv2")
    random = np.random.default_rng(1)
    wide = random.uniform(0, 255, size=(12, 20, 3)).astype(np.float32)
    wide = cv2.resize(wide, (160, 96), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    first, middle, last = (wide[:, k : k + 128] for k in (0, 4, 8))
    made = bench_vfi.dis(cv2)(first, last, [0.5])[0]
    blended = bench_vfi.blend(first, last, [0.5])[0]
    assert metrics.psnr(made, middle) > metrics.psnr(blended, middle) + 6


def test_torch_and_jax_predict_the_same(clip):
    pytest.importorskip("torch")
    from mv2_jax.convert import rife_torch

    cfg = RIFEConfig(widths=(8, 4), scales=(2, 1), pad_to=16)
    random = np.random.default_rng(7)

    tree = jax.tree.map(
        lambda leaf: (random.normal(size=leaf.shape) * 0.2).astype(np.float32),
        converter.target(cfg),
    )
    pair = random.integers(0, 255, size=(2, 19, 37, 3), dtype=np.uint8)
    ours = bench_vfi.network(tree, cfg, 1)(*pair, [0.3, 0.8])
    theirs = rife_torch.load(tree, cfg)(*pair, [0.3, 0.8])
    for a, b in zip(ours, theirs):
        assert a.dtype == b.dtype == np.uint8 and a.shape == b.shape == (19, 37, 3)
        assert np.abs(a.astype(int) - b).max() <= 1  # where a rounding falls the other way
    assert np.abs(ours[0].astype(int) - ours[1]).mean() > 1


def test_a_clip_too_small_to_compare_gets_one_clear_line(tmp_path, capsys):
    media.write_video(tmp_path / "thin.mp4", np.zeros((3, 10, 64, 3), np.uint8), 10)
    assert cli.main(["bench", "vfi", str(tmp_path / "thin.mp4"), "--methods", "nearest"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "thin.mp4 is 64x10; 11 pixels a side is the least" in error


@pytest.mark.parametrize(
    "flags, says",
    [
        (["lost.mp4"], "no such file"),
        (["CLIP", "--times", "1"], "from 2 to 16"),
        (["CLIP", "--methods", "rife"], "takes some of"),
        (["CLIP", "--vfi", "none"], "nothing to measure"),
        (["CLIP", "--methods", "nearest", "--times", "9"], "no gap"),
        ([], "CLIP"),
    ],
)
def test_bad_flags_get_one_clear_line(clip, capsys, flags, says):
    flags = [clip if flag == "CLIP" else flag for flag in flags]
    assert cli.main(["bench", "vfi", *flags]) == 2
    error = capsys.readouterr().err
    *before, last = error.splitlines()
    assert last.startswith("mv2: error: ") and says in last and len(before) <= 1


def test_toybox_gaps_are_the_same_ones_of_worlds_that_training_never_sees(monkeypatch):
    monkeypatch.setattr(bench_vfi, "SIDE", 16)
    found = list(bench_vfi.toybox(2, 8))
    assert len(found) == 8 and {len(run) for run in found} == {3}
    assert found[0][0].shape == (16, 16, 3) and found[0][0].dtype == np.uint8
    np.testing.assert_array_equal(found[0][2], found[1][0])  # one world's gaps share their ends
    assert not np.array_equal(found[6][2], found[7][0])  # and the eighth is of another
    np.testing.assert_array_equal(found[7], list(bench_vfi.toybox(2, 8))[7])
