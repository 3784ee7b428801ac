"""Frames for training come from all over a video, whatever its container says of its length."""

import av
import numpy as np
import pytest

from mv2_jax.train import videos


def write(path, count, sound=0):
    """`count` frames of a grey of 4 times their number, 24 a second; seconds of silence."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libvpx" if path.suffix == ".webm" else "libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"crf": "10", "deadline": "realtime"}
        voice = out.add_stream("aac", rate=8000, layout="mono") if sound else None
        for k in range(count):
            pixels = np.full((48, 64, 3), 4 * k, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())
        if voice:
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 8000 * sound), np.float32), format="fltp", layout="mono"
            )
            silence.sample_rate = 8000
            for chunk in (silence, None):
                out.mux(voice.encode(chunk))
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "avi"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_frames_are_from_where_they_were_asked_for(tmp_path, suffix, share):
    found = videos._frames(write(tmp_path / f"in.{suffix}", 60), share, 4)
    numbers = [frame[0, 0, 0] / 4 for frame in found]
    assert abs(numbers[0] - 0.9 * share * 60) < 3.5  # AVI is late by the frames that wait
    np.testing.assert_allclose(np.diff(numbers), 1, atol=0.6)


def test_a_video_that_ends_before_its_file_gives_its_last_frames(tmp_path):
    found = videos._frames(write(tmp_path / "in.mkv", 24, sound=4), 0.99, 4)
    assert [round(frame[0, 0, 0] / 4) for frame in found] == [20, 21, 22, 23]
    assert len(videos._frames(tmp_path / "in.mkv", 0.99, 30)) == 24
