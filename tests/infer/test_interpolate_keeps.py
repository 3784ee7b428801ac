"""What travels along with the pictures of `mv2 interpolate`, and how their times may be changed."""

import signal
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type
from clips import crowded, encode, pan, shown, stored

from mv2_jax import cli
from mv2_jax.infer import frames
from mv2_jax.infer import interpolate_encode as encoding
from mv2_jax.infer import interpolate_make as making
from mv2_jax.infer import interpolate_packets as packets


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command with nearest pictures in the network's place, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0):
        assert cli.main(["interpolate", "--vfi", "none", "--force", *map(str, words)]) == code

    return run


@pytest.mark.parametrize("out", ["out.mkv", "out.mp4"])
def test_subtitles_chapters_fonts_and_names_are_kept(run, capsys, out):
    crowded("in.mkv")
    run("in.mkv", "-o", out)
    with av.open(out) as container:
        _, voice, words, *_ = container.streams
        assert (voice.metadata["language"], voice.disposition & 1) == ("fra", 1)
        assert words.type == "subtitle" and words.metadata["language"] == "ger"
        assert words.disposition & 64
        assert container.metadata["title"] == "A film"
        names = [
            (c["metadata"]["title"], c["start"] * c["time_base"]) for c in container.chapters()
        ]
        assert names == [("one", 0), ("two", Fraction(2, 5))]
        fonts = [(s.name, s.data) for s in container.streams.attachments]
        said = [(p.pts * p.time_base, bytes(p)) for p in container.demux(words)
                if p.size and len(bytes(p)) > 2]  # fmt: skip
        times = [float(t) for t, _ in said]
        np.testing.assert_allclose(times, [0.1, 0.6], atol=2e-3)
        texts = [data[2 if out == "out.mp4" else 0 :] for _, data in said]
        assert [t.replace(b"<i>", b"").replace(b"</i>", b"") for t in texts] == [b"hello", b"there"]
        voice_flag = voice.disposition & 4
    if out == "out.mkv":
        assert fonts == [("font.ttf", b"letters" * 100)] and words.metadata["title"] == "Deutsch"
        assert voice_flag
    else:
        assert "the attachment font.ttf is left out: only .mkv" in capsys.readouterr().err


def side(frame):
    return {kind: bytes(data) for kind, data in frames.side_of(frame).items()}


def test_hdr_numbers_and_the_place_of_chroma_are_kept(run):
    hdr = ("log-level=none:lossless=1:chromaloc=2:hdr10=1:max-cll=1000,400:master-display="
           "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)")  # fmt: skip
    encode("in.mp4", pan(3), "libx265", "yuv420p10le", **{"x265-params": hdr})
    assert packets.survey("in.mp4").location == "topleft"
    with av.open("in.mp4") as container:
        given = side(next(container.decode(video=0)))
    for out, codec in (("a.mp4", "h264"), ("b.mkv", "hevc")):
        run("in.mp4", "-o", out, "--codec", codec)
        with av.open(out) as container:
            made = side(next(container.decode(video=0)))
        assert made[Type.CONTENT_LIGHT_LEVEL] == given[Type.CONTENT_LIGHT_LEVEL]
        old, new = (np.frombuffer(x[Type.MASTERING_DISPLAY_METADATA], np.int32)[:20].reshape(10, 2)
                    for x in (given, made))  # fmt: skip
        np.testing.assert_allclose(old[:, 0] / old[:, 1], new[:, 0] / new[:, 1], rtol=1e-6)
        assert packets.survey(out).location == "topleft"


def test_quicktime_place_maker_and_timecode_are_kept(run):
    encode("plain.mov", pan(3))
    about = {
        "com.apple.quicktime.make": "Apple", "com.apple.quicktime.model": "iPhone",
        "com.apple.quicktime.location.ISO6709": "+48.1+011.5/",
    }  # fmt: skip
    with (
        av.open("plain.mov") as given,
        av.open("in.mov", "w", options={"movflags": "use_metadata_tags"}) as out,
    ):
        video = out.add_stream_from_template(given.streams.video[0], opaque=True)
        out.metadata.update(about)
        video.metadata["timecode"] = "01:02:03:04"
        for packet in given.demux():
            if packet.size:
                packet.stream = video
                out.mux(packet)
    for out in ("out.mov", "out.mp4"):
        run("in.mov", "-o", out)
        with av.open(out) as container:
            assert about.items() <= container.metadata.items()
            assert container.streams.video[0].metadata["timecode"] == "01:02:03:04"


def test_a_part_of_a_video_with_its_sound(run):
    crowded("in.mkv")
    run("in.mkv", "-o", "out.mp4", "--start", "0.45", "--end", "0:0.8", "--crf", 0)
    given, made = stored("in.mkv")[1], stored("out.mp4")[1]
    found, whole = shown("out.mp4")
    assert abs(whole - Fraction(35, 100)) <= Fraction(1, 10)  # a packet of sound may jut out
    assert [float(t) for t, _ in found[:3]] == [0, 0.025, 0.05]  # 4 began at 0.4
    np.testing.assert_array_equal(made[0][0], given[4][0])
    np.testing.assert_array_equal(made[2][0], given[5][0])
    with av.open("out.mp4") as container:
        assert [c["start"] for c in container.chapters()] == [0]


@pytest.mark.parametrize("sound", ["stretch", "drop"])
def test_slow_motion_keeps_its_pace_and_its_pitch(run, sound):
    crowded("in.mkv")
    run("in.mkv", "-o", "out.mp4", "--slow", 3, "--sound", sound)
    found, whole = shown("out.mp4")
    assert abs(whole - 3) < Fraction(1, 10)
    np.testing.assert_allclose(np.diff([float(t) for t, _ in found]), 0.1, atol=2e-3)
    with av.open("out.mp4") as container:
        assert len(container.streams.audio) == (sound == "stretch")
        if sound == "stretch":
            heard = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
            assert abs(len(heard) / 16000 - 3) < 0.15
            middle = heard[12000:28000] * np.hanning(16000)
            assert abs(np.argmax(np.abs(np.fft.rfft(middle))) - 16000 / 9 / 2 / np.pi) < 3  # Hz


def test_drawings_on_twos_move_on_every_frame(run, monkeypatch):
    asked = []

    def fill(first, second, parts):
        asked.append(list(parts))
        return [first] * len(parts)

    monkeypatch.setattr(making, "filler", lambda *_: fill)
    noise = np.random.default_rng(0).integers(-1, 2, (12, 48, 64, 3))
    drawn = np.clip(np.repeat(pan(6, step=6), 2, axis=0) + noise, 0, 255).astype(np.uint8)
    encode("in.mp4", drawn)
    run("in.mp4", "-o", "out.mp4", "--times", 2, "--dedupe")
    assert asked == [[0.25, 0.5, 0.75]] * 5
    assert len(shown("out.mp4")[0]) == 5 * 4 + 3  # the last drawing is held
    asked.clear()
    run("in.mp4", "-o", "out.mp4", "--times", 2, "--dedupe", 0.1)
    assert asked == [[0.5]] * 11


def test_a_hold_is_no_slow_motion(run, monkeypatch):
    asked = []
    monkeypatch.setattr(
        making,
        "filler",
        lambda *_: lambda a, b, parts: asked.append(len(parts)) or [a] * len(parts),
    )
    still = pan(3, step=6)
    encode("in.mp4", np.concatenate((np.repeat(still[:1], 9, axis=0), still[1:])))
    run("in.mp4", "-o", "out.mp4", "--dedupe")
    assert asked == [1, 1] and len(shown("out.mp4")[0]) == 21


def test_pauses_and_cuts_may_be_crossed(run, capsys):
    both = np.concatenate((pan(3, 96, 128), pan(3, 96, 128, seed=5)))
    encode("in.mp4", both, fps=Fraction(1, 2))
    run("in.mp4", "-o", "out.mp4")
    assert "5 pauses left as they are" in capsys.readouterr().out
    run("in.mp4", "-o", "out.mp4", "--pause", "off")
    assert "1 cuts left as they are" in capsys.readouterr().out
    run("in.mp4", "-o", "out.mp4", "--pause", "off", "--cuts", "off")
    assert "left as" not in capsys.readouterr().out
    run("in.mp4", "-o", "out.mp4", "--pause", "off", "--cuts", "2")
    assert "left as" not in capsys.readouterr().out


def test_several_videos_and_names_that_are_taken(run, tmp_path, capsys):
    encode("a.mp4", pan(2)), encode("b.mp4", pan(3))
    run("a.mp4", "b.mp4")
    assert len(shown("a-smooth.mp4")[0]) == 3 and len(shown("b-smooth.mp4")[0]) == 5
    assert cli.main(["interpolate", "a.mp4", "--vfi", "none"]) == 0
    assert (tmp_path / "a-smooth-2.mp4").exists()
    assert cli.main(["interpolate", "a.mp4", "-o", "b.mp4", "--vfi", "none"]) == 2
    assert "b.mp4 is there already; --force replaces it" in capsys.readouterr().err
    assert cli.main(["interpolate", "a.mp4", "b.mp4", "-o", "c.mp4", "--vfi", "none"]) == 2
    assert "c.mp4 is one file, and there are 2 videos; name a folder" in capsys.readouterr().err
    run("a.mp4", "b.mp4", "-o", "folder")
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == [
        "a-smooth.mp4", "b-smooth.mp4"
    ]  # fmt: skip


def test_a_killed_run_goes_on_behind_its_finished_segments(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encoding, "PICTURES", 4)
    monkeypatch.setattr(encoding, "SECONDS", 0.0)
    encode("in.mp4", pan(12))
    asked = []

    def fill(first, second, parts):
        asked.append(len(asked))
        if len(asked) == stop:
            raise KeyboardInterrupt
        return [first] * len(parts)

    monkeypatch.setattr(making, "filler", lambda *_: fill)
    words = ["interpolate", "in.mp4", "-o", "out.mp4", "--crf", "0"]
    stop = 8
    assert cli.main(words) == 130
    assert "finished frames are kept in" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()
    stop, asked[:] = 100, []
    assert cli.main([*words, "--times", "3"]) == 0  # another piece of work begins anew
    assert len(asked) == 11
    asked.clear()
    (tmp_path / "out.mp4").unlink()
    assert cli.main(words) == 0
    assert "frames are there from before" in capsys.readouterr().err
    assert len(asked) == 11 - 6  # three segments of two gaps were finished
    once = stored("out.mp4")[1]
    assert not list(tmp_path.glob(".*"))
    asked.clear()
    assert cli.main([*words, "--force"]) == 0
    assert len(asked) == 11
    for a, b in zip(once, stored("out.mp4")[1], strict=True):
        np.testing.assert_array_equal(a[0], b[0])


_KILLED = """
import os, signal, sys
from mv2_jax import cli
from mv2_jax.infer import interpolate_encode as encoding, interpolate_make as making
encoding.PICTURES, encoding.SECONDS, asked = 4, 0.0, []
def fill(first, second, parts):
    asked.append(1)
    if len(asked) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return [first] * len(parts)
making.filler = lambda *_: fill
cli.main(sys.argv[1:])
"""


def test_a_run_that_was_killed_outright_goes_on(run, tmp_path, monkeypatch, capsys):
    encode("in.mp4", pan(12))
    words = ["interpolate", "in.mp4", "-o", "out.mp4", "--crf", "0"]
    killed = subprocess.run([sys.executable, "-c", _KILLED, *words], capture_output=True)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "out.mp4").exists()
    asked = []

    def fill(first, second, parts):
        asked.append(1)
        return [first] * len(parts)

    monkeypatch.setattr(making, "filler", lambda *_: fill)
    assert cli.main(words) == 0
    assert "frames are there from before" in capsys.readouterr().err
    assert len(asked) == 11 - 6
    resumed = stored("out.mp4")[1]
    assert cli.main([*words, "--force"]) == 0
    for a, b in zip(resumed, stored("out.mp4")[1], strict=True):
        np.testing.assert_array_equal(a[0], b[0])
    assert not list(tmp_path.glob(".*"))


def test_two_equal_runs_do_not_meet_in_one_folder(run, tmp_path, monkeypatch, capsys):
    encode("in.mp4", pan(6))
    words = ["interpolate", "in.mp4", "-o", "out.mp4"]
    codes = []

    def fill(first, second, parts):
        if not codes:
            codes.append(None)
            codes[0] = cli.main(words)
        return [first] * len(parts)

    monkeypatch.setattr(making, "filler", lambda *_: fill)
    assert cli.main(words) == 0 and codes == [2]
    assert "another run is writing out.mp4 from the same video" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))
