"""`mv2 interpolate` on videos made here: times, sound, cuts, stills, and all that may be wrong."""

import signal
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from mv2_jax import cli
from mv2_jax.infer import interpolate, media


def pan(count, height=48, width=64, step=2, seed=0):
    """[count, height, width, 3]: a textured ground that moves left."""
    random = np.random.default_rng(seed)
    long = width + step * count
    cells = random.integers(30, 225, size=(height // 8 + 1, long // 8 + 1, 3), dtype=np.uint8)
    ground = np.asarray(Image.fromarray(cells).resize((long, height), Image.Resampling.BICUBIC))
    return np.stack([ground[:, k * step : k * step + width] for k in range(count)])


def write(path, frames, times=None, codec="libx264", pix_fmt="yuv420p", span=1, sound=False):
    """A lossless video, its frames on show at `times` (hundredths of a second), 10 a second."""
    times = list(range(0, 10 * len(frames), 10)) if times is None else times
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=10)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = pix_fmt, {"crf": "0", "qp": "0", "bf": "0"}
        stream.codec_context.color_range = span
        stream.codec_context.time_base = Fraction(1, 100)
        voice = out.add_stream("aac", rate=16000, layout="mono") if sound else None
        for pixels, time in zip(frames, times):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_color_range=span)
            frame.pts, frame.time_base = time, Fraction(1, 100)
            out.mux(stream.encode(frame))
        if voice:
            tone = np.sin(np.arange(16000 * len(frames) // 10) / 9).astype(np.float32)[None] / 2
            audio = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            audio.sample_rate, audio.pts, audio.time_base = 16000, 0, Fraction(1, 16000)
            for chunk in (audio, None):
                out.mux(voice.encode(chunk))
        out.mux(stream.encode())
    return path


def read(path):
    """(times in seconds, luma planes) of a video."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        lumas = [frame.reformat(format="gray16le").to_ndarray() for frame in frames]
        return [frame.pts * frame.time_base for frame in frames], np.stack(lumas)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command without loss and with blends in the network's place; gives (times, luma)."""

    def blend(first, second, parts):
        return [
            tuple(np.round(a * (1 - p) + b * p).astype(a.dtype) for a, b in zip(first, second))
            for p in parts
        ]

    monkeypatch.setattr(interpolate, "_filler", lambda *_: blend)

    def run(source, *flags, out="out.mp4", code=0):
        done = cli.main(["interpolate", str(source), "-o", str(tmp_path / out), "--crf", "0",
                         *map(str, flags)])  # fmt: skip
        assert done == code
        return read(tmp_path / out) if code == 0 else None

    return run


def test_every_gap_is_filled_and_what_was_given_stays(run, tmp_path):
    source = write(tmp_path / "in.mp4", pan(5))
    given = read(source)[1]
    times, luma = run(source, "--times", 3)
    assert times == [Fraction(k, 30) for k in range(13)]
    np.testing.assert_array_equal(luma[::3], given)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.duration == 500_000  # the last frame stays for as long as it did
        assert container.streams.video[0].average_rate == 26  # 13 frames in half a second
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_frames_of_uneven_pace_keep_their_times(run, tmp_path, suffix):
    stamps = [0, 3, 20, 24, 60, 61]
    source = write(tmp_path / f"in.{suffix}", pan(6), stamps)
    times, luma = run(source, "--times", 2, out=f"out.{suffix}")
    np.testing.assert_array_equal(luma[::2], read(source)[1])
    given = np.array(stamps) / 100
    np.testing.assert_allclose([float(t) for t in times[::2]], given, atol=1e-6)
    np.testing.assert_allclose(
        [float(t) for t in times[1::2]], (given[1:] + given[:-1]) / 2, atol=6e-4
    )


def test_a_wanted_pace_takes_given_frames_where_it_meets_them(run, tmp_path):
    source = write(tmp_path / "in.mp4", pan(4))
    given = read(source)[1]
    times, luma = run(source, "--fps", 25)
    assert times == [Fraction(k, 25) for k in range(10)]
    np.testing.assert_array_equal(luma[[0, 5]], given[[0, 2]])
    blend = given[0] * 0.6 + given[1] * 0.4
    assert np.abs(luma[1] - blend).mean() < 200  # of 65535
    np.testing.assert_array_equal(luma[8], luma[9])  # after the last frame there is nothing new


def test_sound_is_copied_packet_by_packet(run, tmp_path):
    source = write(tmp_path / "in.mp4", pan(10), sound=True)
    for out in ("out.mp4", "out.mkv"):
        run(source, out=out)
        heard = []
        for path in (source, tmp_path / out):
            # Matroska knows no time below zero, so there sound and picture are later together.
            start = float(read(path)[0][0])
            with av.open(str(path)) as container:
                packets = [p for p in container.demux(audio=0) if p.size]
                heard.append([(bytes(p), float(p.pts * p.time_base) - start) for p in packets])
        assert [data for data, _ in heard[0]] == [data for data, _ in heard[1]]
        np.testing.assert_allclose(*([t for _, t in h] for h in heard), atol=1e-3)


def test_stills_are_copied_and_cuts_and_pauses_not_crossed(run, tmp_path, capsys):
    here, there = pan(3, 96, 128), pan(3, 96, 128, seed=5)
    frames = np.concatenate((here, here[-1:], there))
    source = write(tmp_path / "in.mp4", frames, [0, 10, 20, 30, 40, 50, 200])
    luma = run(source, "--times", 4)[1]
    given = read(source)[1]
    np.testing.assert_array_equal(luma[8:14], given[[2] * 4 + [3] * 2])  # a still, then a cut
    np.testing.assert_array_equal(luma[14:16], given[[4, 4]])  # its later half
    np.testing.assert_array_equal(luma[20:24], given[[5] * 4])  # a pause
    assert len(np.unique(luma[:4], axis=0)) == 4
    assert "1 cuts and 1 pauses left as they are" in capsys.readouterr().out


def test_ten_bits_and_full_range_stay_what_they_are(run, tmp_path):
    deep = write(tmp_path / "deep.mp4", pan(3), pix_fmt="yuv420p10le")
    full = write(tmp_path / "full.mp4", pan(3), span=2)
    for source, form, span in ((deep, "yuv420p10le", 1), (full, "yuvj420p", 2)):
        luma = run(source)[1]
        np.testing.assert_array_equal(luma[::2], read(source)[1])
        for path in (source, tmp_path / "out.mp4"):
            with av.open(str(path)) as container:
                frame = next(container.decode(video=0))
                assert (frame.format.name, max(frame.color_range, 1)) == (form, span)


@pytest.mark.parametrize("codec, suffix", [("ffv1", "mkv"), ("mpeg4", "avi"), ("gif", "gif")])
def test_other_containers_and_odd_sides(run, tmp_path, codec, suffix):
    pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
    source = write(tmp_path / f"in.{suffix}", pan(4, 47, 63), codec=codec, pix_fmt=pix_fmt)
    times, luma = run(source)
    assert luma.shape == (7, 48, 64)
    np.testing.assert_allclose(np.diff([float(t) for t in times]), 0.05, atol=2e-3)


def test_a_turned_video_comes_upright(run, tmp_path):
    source = write(tmp_path / "in.mp4", pan(3))
    upright = read(source)[1]
    content = bytearray(source.read_bytes())
    matrix = content.find(b"tkhd") + 4 + 40
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    content[matrix : matrix + 36] = quarter
    source.write_bytes(content)
    luma = run(source)[1]
    np.testing.assert_array_equal(luma[::2], np.rot90(upright, -1, axes=(1, 2)))


def test_one_frame_is_a_video_too(run, tmp_path):
    source = write(tmp_path / "in.mp4", pan(1))
    times, luma = run(source, "--times", 3)
    assert times == [0]
    np.testing.assert_array_equal(luma, read(source)[1])


def test_memory_holds_one_gap(run, tmp_path, monkeypatch):
    """When a gap is filled, nothing beyond its second frame has been decoded."""
    source, seen, filled = write(tmp_path / "in.mp4", pan(8)), [], []
    original = interpolate.reading.Source.events

    def events(self):
        for event in original(self):
            seen.append(event.time)
            yield event

    fill = interpolate._filler()
    monkeypatch.setattr(interpolate.reading.Source, "events", events)
    monkeypatch.setattr(
        interpolate, "_filler", lambda *_: lambda *gap: filled.append(len(seen)) or fill(*gap)
    )
    run(source)
    assert filled == [2, 3, 4, 5, 6, 7, 8]


@pytest.fixture
def terminal():
    """Under nohup, which tests may run under, SIGHUP is ignored; here it is not."""
    was = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, was)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("how", ["ctrl-c", "SIGTERM", "SIGHUP", "error"])
def test_whatever_stops_it_nothing_half_written_stays(run, tmp_path, monkeypatch, how):
    source = write(tmp_path / "in.mp4", pan(4))
    (tmp_path / "out.mp4").write_text("as it was")

    def fill(*_):
        if how.startswith("SIG"):
            signal.raise_signal(signal.Signals[how])
        raise KeyboardInterrupt if how == "ctrl-c" else OSError("no space left")

    monkeypatch.setattr(interpolate, "_filler", lambda *_: fill)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    run(source, code=1 if how == "error" else 130)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
    assert (tmp_path / "out.mp4").read_text() == "as it was"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def spoil(folder):
    """Files that are no good, and two that are."""
    good = write(folder / "good.mp4", pan(30, 96, 128))
    media.write_video(folder / "front.mp4", pan(30, 96, 128), 10)  # its index comes first
    write(folder / "good.mkv", pan(30, 96, 128), sound=True)
    for name in ("good.mp4", "front.mp4", "good.mkv"):
        content = (folder / name).read_bytes()
        (folder / f"cut-{name}").write_bytes(content[: len(content) * 2 // 3])
    content = bytearray(good.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    (folder / "spoilt.mp4").write_bytes(content)
    (folder / "empty.mp4").touch()
    (folder / "text.txt").write_text("this is no video\n" * 50)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(1).bytes(20000))
    with av.open(str(folder / "sound.m4a"), "w") as out:
        voice = out.add_stream("aac", rate=16000, layout="mono")
        audio = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        audio.sample_rate = 16000
        out.mux([*voice.encode(audio), *voice.encode()])


def test_bad_files_get_one_clear_line(run, tmp_path, capsys):
    spoil(tmp_path)
    kept = sorted(p.name for p in tmp_path.iterdir())
    wanted = {
        "none.mp4": "no such file", ".": "is a directory", "cut-good.mp4": "is damaged",
        "cut-front.mp4": "cut short", "spoilt.mp4": "damaged", "empty.mp4": "no video",
        "cut-good.mkv": "damaged", "text.txt": "no video",
        "noise.mp4": "no video", "sound.m4a": "no video in it",
    }  # fmt: skip
    for name, reason in wanted.items():
        run(tmp_path / name, code=2)
        lines = [x for x in capsys.readouterr().err.splitlines() if "mv2: error:" in x]
        assert len(lines) == 1 and reason in lines[0], (name, lines)
    assert sorted(p.name for p in tmp_path.iterdir()) == kept


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--times", "0"], "from 1 to 64"),
        (["--fps", "0.2"], "from 1 to 1000"),
        (["--fps", "60", "--times", "2"], "not allowed with"),
        (["--vfi", "rive"], "did you mean 'rife'"),
        (["--vfi", "lost.safetensors"], "no such file"),
        (["-o", "out.webm"], ".mp4, .mkv, .mov"),
        (["-o", "in.mp4"], "another name"),
        (["-o", "nowhere/out.mp4"], "cannot write nowhere/out.mp4: no such folder"),
        (["--speed", "2"], "--speed"),
    ],
)
def test_bad_flags_get_one_clear_line(tmp_path, monkeypatch, capsys, flags, says):
    monkeypatch.chdir(tmp_path)
    write("in.mp4", pan(2))
    assert cli.main(["interpolate", "in.mp4", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mv2: error: ") and error.count("\n") == 1 and says in error
