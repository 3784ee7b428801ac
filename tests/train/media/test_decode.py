"""Frames at times are those that FFmpeg decodes, wherever a clip begins; broken files say so."""

import io

import media_clips
import numpy as np
import pytest
from clips import encode, pan
from PIL import Image

from mv2_jax.errors import InputError
from mv2_jax.train.media.decode import Info, cover, probe, take
from mv2_jax.train.media.index import _spanned
from mv2_jax.train.media.records import Frames


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """40 frames at 10 a second, a keyframe every 8."""
    path = tmp_path_factory.mktemp("decode") / "video.mp4"
    encode(path, pan(40, 48, 64, step=1), fps=10, g="8", **{"keyint_min": "8"})
    return path


@pytest.mark.parametrize("first", [0, 3, 8, 15, 16, 29, 39])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_frames_at_times_are_ffmpegs(video, first, as_bytes):
    whole = media_clips.frames_of(video)
    content = video.read_bytes() if as_bytes else str(video)
    wanted = list(range(first, 40, 4))
    found = take(content, [n / 10 for n in wanted])
    np.testing.assert_array_equal(np.stack(found), whole[wanted])
    # Between two frames the first of them is on show.
    np.testing.assert_array_equal(take(content, [first / 10 + 0.06])[0], whole[first])


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".webm", ".gif"])
def test_other_containers(tmp_path, suffix):
    path = tmp_path / f"video{suffix}"
    codec, form = {
        ".webm": ("libvpx-vp9", "yuv420p"), ".gif": ("gif", "rgb8")
    }.get(suffix, ("libx264", "yuv420p"))  # fmt: skip
    encode(path, pan(20, 48, 64), codec=codec, form=form, fps=10)
    info, whole = probe(str(path)), media_clips.frames_of(path)
    assert (info.height, info.width, info.fps) == (48, 64, 10.0)
    assert info.seconds == pytest.approx(1.9, abs=0.06)
    found = take(str(path), [1.2, 1.5])
    np.testing.assert_array_equal(np.stack(found), whole[[12, 15]])


def test_what_a_file_is(video, tmp_path):
    assert probe(str(video)) == Info(48, 64, 40, 10.0, pytest.approx(3.9))
    assert probe(video.read_bytes()) == probe(str(video))
    image = Image.fromarray(pan(1, 40, 64)[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert probe(str(tmp_path / "turned.jpg")) == Info(64, 40)
    assert take(str(tmp_path / "turned.jpg"), [0.0])[0].shape == (64, 40, 3)
    image.save(file := io.BytesIO(), "png")
    assert probe(file.getvalue()) == Info(40, 64)
    np.testing.assert_array_equal(take(file.getvalue(), [0.0])[0], np.asarray(image))
    frames = Frames(pan(5, 16, 16), 4.0)
    assert probe(frames) == Info(16, 16, 5, 4.0, 1.0)
    np.testing.assert_array_equal(np.stack(take(frames, [0.5, 1.0])), frames.pixels[[2, 4]])


def test_broken_files_say_why(video, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"this is no video at all")
    with pytest.raises(InputError, match="damaged, or no video"):
        probe(str(path))
    path.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.raises(InputError):
        probe(str(path)), take(str(path), [3.5])
    with pytest.raises(InputError, match="no such file"):
        probe(str(tmp_path / "none.mp4"))
    Image.fromarray(pan(1, 8, 64)[0]).save(tmp_path / "small.png")
    with pytest.raises(InputError, match="64x8 pixels are too small"):
        probe(str(tmp_path / "small.png"))
    with pytest.raises(InputError, match="ends before it says"):
        take(str(video), [9.0])


def test_a_part_of_a_video(video):
    info = probe(str(video))
    assert _spanned(info, (1.0, 2.0)) == Info(48, 64, 11, 10.0, 1.0)
    assert _spanned(info, (0.0, None)) == info
    with pytest.raises(InputError, match=r"nothing after 5 s: it ends at 3.9 s"):
        _spanned(info, (5.0, 9.0))


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (17, 23), (96, 32)])
@pytest.mark.parametrize("at", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_cuts_are_pillows(size, at):
    """Scaled whole and then cut, as Pillow does it; the cut's corner is where it says."""
    picture = pan(1, 48, 64)[0]
    made, (top, left) = cover(picture, size, at)
    scale = max(size[0] / 48, size[1] / 64)
    scaled = (max(size[1], round(64 * scale)), max(size[0], round(48 * scale)))
    whole = np.asarray(Image.fromarray(picture).resize(scaled, Image.Resampling.LANCZOS))
    expected = whole[top : top + size[0], left : left + size[1]]
    assert made.shape == (*size, 3)
    assert np.abs(made.astype(int) - expected).max() <= 1
    flipped, corner = cover(picture[:, ::-1], size, at, flip=True)
    assert corner == (top, left)
    np.testing.assert_array_equal(flipped, made)
