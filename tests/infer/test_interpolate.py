"""`mv2 interpolate` on videos made here: times, sound, cuts, stills, and all that may be wrong."""

import signal
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mv2_jax import cli
from mv2_jax.infer import interpolate_make as making
from mv2_jax.infer import interpolate_packets as packets
from mv2_jax.infer import interpolate_read as reading
from mv2_jax.infer import media


def pan(count, height=48, width=64, step=2, seed=0):
    """[count, height, width, 3]: a textured ground that moves left."""
    random = np.random.default_rng(seed)
    long = width + step * count
    cells = random.integers(30, 225, size=(height // 8 + 1, long // 8 + 1, 3), dtype=np.uint8)
    ground = np.asarray(Image.fromarray(cells).resize((long, height), Image.Resampling.BICUBIC))
    return np.stack([ground[:, k * step : k * step + width] for k in range(count)])


def write(
    path, frames, times=None, codec="libx264", pix_fmt="yuv420p", span=1, sound=None, reordered=0
):
    """A lossless video, its frames on show at `times` (hundredths of a second), 10 a second.

    `sound` is the name of a codec. With `reordered`, so many frames in a row wait for a later one,
    which x264 does with loss alone.
    """
    times = list(range(0, 10 * len(frames), 10)) if times is None else times
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=10)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.options = {"crf": "0", "qp": "0", "bf": "0"}
        if reordered:
            stream.options = {"qp": "10", "bf": str(reordered), "b_strategy": "0"}
        stream.codec_context.color_range = span
        stream.codec_context.time_base = Fraction(1, 100)
        voice = out.add_stream(sound, rate=8000, layout="mono") if sound else None
        for pixels, time in zip(frames, times):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_color_range=span)
            frame.pts, frame.time_base = time, Fraction(1, 100)
            out.mux(stream.encode(frame))
        if voice:
            tone = np.sin(np.arange(800 * len(frames)) / 9).astype(np.float32)[None] / 2
            audio = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            audio.sample_rate, audio.pts, audio.time_base = 8000, 0, Fraction(1, 8000)
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


def heard(path):
    """(bytes, seconds) of each packet of audio that is to be heard."""
    with av.open(str(path)) as container:
        return [
            (bytes(packet), float(packet.pts * packet.time_base))
            for packet in container.demux(audio=0)
            if packet.size and not packet.is_discard
        ]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command without loss and with blends in the network's place; gives (times, luma)."""

    def blend(first, second, parts):
        return [
            tuple(np.round(a * (1 - p) + b * p).astype(a.dtype) for a, b in zip(first, second))
            for p in parts
        ]

    monkeypatch.setattr(making, "filler", lambda *_: blend)

    def run(source, *flags, out="out.mp4", code=0):
        done = cli.main(["interpolate", str(source), "-o", str(tmp_path / out), "--force",
                         "--crf", "0", *map(str, flags)])  # fmt: skip
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


@pytest.mark.parametrize("cut", [0, 4000])
@pytest.mark.parametrize("out", ["out.mp4", "out.mkv"])
def test_sound_is_copied_packet_by_packet(run, tmp_path, out, cut):
    """And of a trimmed video, whose first packets are there for the decoder alone, no more."""
    whole, source = write(tmp_path / "whole.mp4", pan(10), sound="aac"), tmp_path / "in.mp4"
    with av.open(str(whole)) as given, av.open(str(source), "w") as trimmed:
        streams = [trimmed.add_stream_from_template(stream) for stream in given.streams]
        for packet in given.demux():
            if packet.size:
                packet.dts -= cut * (packet.stream.type == "audio")
                packet.pts -= cut * (packet.stream.type == "audio")
                packet.stream = streams[packet.stream.index]
                trimmed.mux(packet)
    # Matroska knows no time below zero, so there sound and picture are later together.
    start = float(run(source, out=out)[0][0])
    given, copied = heard(source), heard(tmp_path / out)
    assert [data for data, _ in copied] == [data for data, _ in given]
    np.testing.assert_allclose([t - start for _, t in copied], [t for _, t in given], atol=1e-3)


@pytest.mark.parametrize("out", ["out.mp4", "out.mkv"])
@pytest.mark.parametrize("spoil", [lambda t: t // 2048 * 2048, lambda t: t - 2 * (t % 4096)])
def test_sound_whose_times_repeat_or_step_back_is_copied(run, tmp_path, monkeypatch, out, spoil):
    source, original = write(tmp_path / "in.mp4", pan(20), sound="aac"), packets.joined

    def joined(container):
        for packet in original(container):
            if packet.size and packet.stream.type == "audio":
                packet.pts = packet.dts = spoil(packet.pts)
            yield packet

    monkeypatch.setattr(packets, "joined", joined)
    run(source, out=out)
    assert [data for data, _ in heard(tmp_path / out)] == [data for data, _ in heard(source)]


@pytest.mark.parametrize(
    "codec, source, out, says",
    [
        ("pcm_mulaw", "in.mov", "out.mp4", "(pcm_mulaw) as it is; try .mov"),
        ("pcm_u8", "in.avi", "out.mp4", "(pcm_u8) as it is; try .mkv or .mov"),
        ("adpcm_ima_wav", "in.avi", "out.mkv", "as it is; convert the audio first"),
        ("libopencore_amrnb", "in.mov", "out.mov", ""),
        ("pcm_s16le", "in.avi", "out.mp4", ""),
    ],
)
def test_sound_that_does_not_fit_gets_one_clear_line(
    run, tmp_path, capsys, codec, source, out, says
):
    if codec not in av.codecs_available:
        pytest.skip(f"the FFmpeg inside PyAV has no {codec}, as of PyAV 19's")
    run(write(tmp_path / source, pan(3), codec="mpeg4", sound=codec), out=out, code=2 * bool(says))
    lines = [x for x in capsys.readouterr().err.splitlines() if "mv2: error:" in x]
    assert len(lines) == bool(says) and says in "".join(lines)


def test_sound_without_a_decoder_is_named(run, tmp_path, capsys):
    source = write(tmp_path / "in.avi", pan(3), codec="mpeg4", sound="pcm_mulaw")
    content = bytearray(source.read_bytes())
    tag = content.rfind(b"strf") + 8
    content[tag : tag + 2] = b"\x99\x99"
    source.write_bytes(content)
    run(source)
    assert "mv2: warning: 1 audio stream is left out" in capsys.readouterr().err


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
    assert luma.shape == ((7, 47, 63) if codec == "gif" else (7, 48, 64))
    np.testing.assert_allclose(np.diff([float(t) for t in times]), 0.05, atol=2e-3)


@pytest.mark.parametrize(
    "matrix, turned",
    [
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1, axes=(1, 2))),
        ((-1, 0, 0, 1), lambda x: x[:, :, ::-1]),
        ((0, 1, 1, 0), lambda x: x.swapaxes(1, 2)),
    ],
)
def test_a_turned_or_mirrored_video_comes_upright(run, tmp_path, matrix, turned):
    source = write(tmp_path / "in.mp4", pan(3))
    given = read(source)[1]
    content = bytearray(source.read_bytes())
    place = content.find(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    source.write_bytes(content)
    np.testing.assert_array_equal(run(source)[1][::2], turned(given))


def test_frames_of_avi_keep_their_order_though_their_packets_do_not(run, tmp_path):
    source = write(tmp_path / "in.avi", pan(24), range(24), reordered=3)
    times, luma = run(source)
    np.testing.assert_array_equal(luma[::2], read(source)[1])
    np.testing.assert_allclose(np.diff([float(t) for t in times]), 0.005, atol=1e-6)


def test_frames_without_a_time_of_their_own_are_named(run, tmp_path, capsys):
    source = write(tmp_path / "in.mkv", pan(4), [0, 10, 10, 20], codec="ffv1")
    assert len(run(source)[0]) == 5
    assert "mv2: warning: 1 frames are left out" in capsys.readouterr().err


def test_one_frame_is_a_video_too(run, tmp_path):
    source = write(tmp_path / "in.mp4", pan(1))
    times, luma = run(source, "--times", 3)
    assert times == [0]
    np.testing.assert_array_equal(luma, read(source)[1])


def test_memory_holds_one_gap(run, tmp_path, monkeypatch):
    """When a gap is filled, nothing beyond its second frame has been decoded."""
    source, seen, filled = write(tmp_path / "in.mp4", pan(8)), [], []
    original, fill = reading.Source.pictures, making.filler()

    def given(self, *args):
        for picture in original(self, *args):
            seen.append(picture.time)
            yield picture

    monkeypatch.setattr(reading.Source, "pictures", given)
    monkeypatch.setattr(
        making, "filler", lambda *_: lambda *gap: filled.append(len(seen)) or fill(*gap)
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
def test_whatever_stops_it_nothing_half_written_stays(run, tmp_path, monkeypatch, capsys, how):
    source = write(tmp_path / "in.mp4", pan(4))
    (tmp_path / "out.mp4").write_text("as it was")

    def fill(*_):
        if how.startswith("SIG"):
            signal.raise_signal(signal.Signals[how])
        raise KeyboardInterrupt if how == "ctrl-c" else OSError("no space left")

    monkeypatch.setattr(making, "filler", lambda *_: fill)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    run(source, code=1 if how == "error" else 130)
    assert "kept in" not in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
    assert (tmp_path / "out.mp4").read_text() == "as it was"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def spoil(folder):
    """Files that are no good, and two that are."""
    good = write(folder / "good.mp4", pan(30, 96, 128))
    media.write_video(folder / "front.mp4", pan(30, 96, 128), 10)  # its index comes first
    write(folder / "good.mkv", pan(30, 96, 128), sound="aac")
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
        "none.mp4": "no such file", ".": "holds no pictures", "cut-good.mp4": "is damaged",
        "empty.mp4": "no video", "text.txt": "no video", "/dev/zero": "no ordinary file",
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
        (["-o", "out.avi"], ".mp4, .mkv, .mov"),
        (["-o", "there.mp4"], "there.mp4 is there already; --force"),
        (["--codec", "ffv1"], "ffv1 goes into .mkv"),
        (["--codec", "h266"], "did you mean 'h264'"),
        (["--codec", "prores", "-o", "out.mov", "--crf", "3"], "has no such quality"),
        (["--preset", "fastest"], "did you mean 'faster'"),
        (["--crf", "60"], "goes from 0 to 51"),
        (["--pixels", "yuv42p"], "does not write 'yuv42p'"),
        (["--start", "3", "--end", "2"], "--end 2 is not after --start 3"),
        (["--start", "nine"], "takes seconds"),
        (["--start", "60"], "no frames from --start on: it is 0.20 s long"),
        (["--slow", "0.5"], "from 1 to 64"),
        (["--sound", "stretch"], "no effect without --slow"),
        (["in.mp4", "-o", "one.mp4"], "there are 2 videos; name a folder"),
        (["-o", "in.mp4"], "another name"),
        (["-o", "nowhere/out.mp4"], "cannot write nowhere/out.mp4: no such folder"),
        (["--speed", "2"], "--speed"),
    ],
)
def test_bad_flags_get_one_clear_line(tmp_path, monkeypatch, capsys, flags, says):
    monkeypatch.chdir(tmp_path)
    write("in.mp4", pan(2))
    Path("there.mp4").touch()
    assert cli.main(["interpolate", "in.mp4", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mv2: error: ") and error.count("\n") == 1 and says in error
