import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax import params
from mv2_jax.errors import InputError
from mv2_jax.toybox import evaluate
from mv2_jax.toybox.judge import KINDS, NONE
from mv2_jax.toybox.renderer import frame_times, render_batch
from mv2_jax.toybox.vocabulary import SIZES
from mv2_jax.toybox.world import sample_world


@pytest.fixture(scope="module")
def jury():
    return evaluate.load()


@pytest.fixture(scope="module")
def clips():
    """Fresh true renders as uint8, and their words: every word of each kind occurs."""
    count = 48
    fixed = [jnp.arange(count) * step % size for size, step in zip(SIZES, (1, 3, 5, 7))]
    worlds = jax.vmap(sample_world)(jax.random.split(jax.random.key(77), count), *fixed)
    video = render_batch(worlds, frame_times(8), (96, 96))
    video = np.asarray(jnp.round((video + 1) * 127.5)).astype(np.uint8)
    return video, np.stack(worlds[:4], axis=-1)


def shares_of_none(jury, video):
    verdicts = evaluate.judge(jury, video)
    return {kind: np.mean(verdicts[kind].index == NONE[kind]) for kind in KINDS}


def test_the_shipped_judge_knows_true_renders(jury, clips):
    rates = evaluate.accuracy(jury, *clips)
    for kind in KINDS:
        assert rates[kind].right >= 47, (kind, str(rates[kind]))


def test_the_shipped_judge_is_right_about_every_word(jury, clips):
    video, words = clips
    found = evaluate.right(evaluate.judge(jury, video), words)
    for i, kind in enumerate(KINDS):
        assert len(np.unique(words[found[kind], i])) == SIZES[i]


def test_the_shipped_judge_says_none_to_noise_blends_and_averages(jury, clips):
    video, words = clips[0].astype(np.float32) / 127.5 - 1, clips[1]
    partner = np.arange(len(video))
    for shift in range(1, len(video)):
        moved = np.roll(np.arange(len(video)), shift)
        apart = (words != words[moved]).all(axis=1)
        partner = np.where((partner == np.arange(len(video))) & apart, moved, partner)
    apart = partner != np.arange(len(video))
    blends = (0.5 * video + 0.5 * video[partner])[apart]
    averages = np.mean([np.roll(video, shift, axis=0) for shift in (0, 5, 11, 17)], axis=0)
    noise = np.random.default_rng(0).normal(0, 0.5, (16, 8, 64, 64, 3)).clip(-1, 1)
    assert min(shares_of_none(jury, noise.astype(np.float32)).values()) == 1.0
    assert min(shares_of_none(jury, blends).values()) > 0.9
    assert min(shares_of_none(jury, averages).values()) > 0.9


def test_a_still_picture_has_no_motion(jury, clips):
    still = np.repeat(clips[0][:, :1], 8, axis=1)
    assert shares_of_none(jury, still)["motion"] > 0.9


def test_images_are_videos_of_one_frame(jury, clips):
    video, words = clips
    found = evaluate.right(evaluate.judge(jury, video[:, :1]), words)
    assert min(found[kind].mean() for kind in KINDS[:3]) > 0.9


def test_in_parts_or_at_once(jury, clips):
    video = clips[0][:10]
    whole = evaluate.judge(jury, video, chunk=16)
    parts = evaluate.judge(jury, video, chunk=4)
    for kind in KINDS:
        np.testing.assert_allclose(whole[kind].probabilities, parts[kind].probabilities, atol=1e-5)
        assert whole[kind].words == parts[kind].words


def test_a_video_has_five_axes(jury):
    with pytest.raises(ValueError, match=r"\[B, T, H, W, 3\], not \[8, 64, 64, 3\]"):
        evaluate.judge(jury, np.zeros((8, 64, 64, 3)))


def test_another_file_is_no_judge(tmp_path):
    params.save(tmp_path / "x.safetensors", {"w": np.zeros(2, np.float32)}, {"a": 1})
    with pytest.raises(InputError, match="holds no judge"):
        evaluate.load(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"y\.safetensors is damaged or not a safetensors file"):
        evaluate.load(tmp_path / "y.safetensors")


def test_wilson_interval():
    rate = evaluate.wilson(8, 10)
    # Table value, e.g. of Agresti and Coull, The American Statistician 52 (1998).
    assert (round(rate.low, 3), round(rate.high, 3)) == (0.490, 0.943)
    assert evaluate.wilson(0, 20).low == 0.0 and evaluate.wilson(0, 20).high < 0.17
    assert evaluate.wilson(20, 20).high == 1.0
    with pytest.raises(ValueError, match="3 of 2"):
        evaluate.wilson(3, 2)


def test_surety_sums_the_asked_words_logarithms_over_a_floor():
    shares = {kind: np.full((2, size + 1), 1 / (size + 1)) for kind, size in zip(KINDS, SIZES)}
    shares["thing"][1] = 0
    shares["thing"][1, 3] = 1
    verdicts = {k: evaluate.Verdict(p.argmax(1), [], p) for k, p in shares.items()}
    found = evaluate.surety(verdicts, [[3, 0, 0, 0], [2, 0, 0, 0]])
    rest = -sum(np.log(size + 1) for size in SIZES[1:])
    assert np.allclose(found, [rest - np.log(SIZES[0] + 1), rest + np.log(1e-4)])
    assert np.allclose(
        evaluate.surety(verdicts, [[2, 0, 0, 0]] * 2, ("colour",)), -np.log(SIZES[1] + 1)
    )
