"""What people's files hold, and what of it `mv2 interpolate` keeps, mends or says."""

import re
from fractions import Fraction

import av
import numpy as np
import pytest
from clips import encode, pan, shown, stored

from mv2_jax import cli
from mv2_jax.infer import interpolate_codecs as codecs


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command with nearest pictures in the network's place, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0):
        assert cli.main(["interpolate", "--vfi", "none", "--force", *map(str, words)]) == code

    return run


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("out", ["out.mp4", "out.mov", "out.mkv"])
def test_the_last_picture_stays_for_as_long_as_it_did(run, times, out):
    """With B-frames, MP4 would keep the duration of another picture."""
    encode("in.mp4", pan(20))
    run("in.mp4", "-o", out, "--times", times)
    found, whole = shown(out)
    assert whole == 2
    if out != "out.mkv":  # which keeps no durations, and rounds times to milliseconds
        assert found[-1] == (Fraction(19, 10), Fraction(1, 10))
        ends = [time + lasts for time, lasts in found]
        assert ends[-1] == 2 and max(ends) == 2


def test_the_last_picture_of_a_gif_stays_on(run):
    from PIL import Image

    pictures = [Image.fromarray(x) for x in pan(4)]
    pictures[0].save("in.gif", save_all=True, append_images=pictures[1:],
                     duration=[100, 100, 100, 2000])  # fmt: skip
    run("in.gif", "-o", "out.mp4")
    found, whole = shown("out.mp4")
    assert whole == Fraction(23, 10) and found[-1][1] == 2


def test_the_length_is_right_where_the_pace_changes(run):
    from PIL import Image

    pictures = [Image.fromarray(x) for x in pan(6)]
    pictures[0].save("in.gif", save_all=True, append_images=pictures[1:],
                     duration=[50, 100, 100, 100, 200, 2000])  # fmt: skip
    run("in.gif", "-o", "out.mp4")
    with av.open("out.mp4") as container:
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base == Fraction(255, 100)


KEPT = [
    ("ffv1", "bgr0", "mkv", "mp4", [], "libx264rgb"),
    ("ffv1", "bgr0", "mkv", "mkv", ["--codec", "ffv1"], None),
    ("libx265", "yuv420p12le", "mp4", "mp4", ["--codec", "hevc"], None),
    ("ffv1", "yuv422p12le", "mkv", "mkv", ["--codec", "ffv1"], None),
    ("ffv1", "yuv440p", "mkv", "webm", [], None),
    ("ffv1", "yuv411p", "mkv", "mkv", ["--codec", "ffv1"], None),
    ("ffv1", "yuva420p", "mkv", "webm", [], "libvpx-vp9"),
    ("libvpx-vp9", "yuva420p", "webm", "mkv", ["--codec", "ffv1"], "libvpx-vp9"),
    ("ffv1", "bgra", "mkv", "mkv", ["--codec", "ffv1"], None),
    ("ffv1", "gray16le", "mkv", "mkv", ["--codec", "ffv1"], None),
]


@pytest.mark.parametrize("codec, form, given, out, flags, encoder", KEPT)
def test_given_pictures_pass_in_their_own_samples(
    run, capsys, codec, form, given, out, flags, encoder
):
    encode(f"in.{given}", pan(3, 46, 62), codec, form)
    lossless = [] if "ffv1" in flags else ["--crf", "0"]
    run(f"in.{given}", "-o", f"out.{out}", *flags, *lossless)
    alpha = {"webm": "libvpx-vp9"} if "yuva" in form else {}
    forms, wanted = stored(f"in.{given}", alpha.get(given))
    _, made = stored(f"out.{out}", alpha.get(out))
    if forms[0] == "bgr0" and out == "mp4":  # x264 gives it back as planes
        wanted = [[np.ascontiguousarray(p[0].reshape(46, 62, 4)[..., k]) for k in (1, 0, 2)]
                  for p in wanted]  # fmt: skip
    assert len(made) == 5 and "become" not in capsys.readouterr().err
    for old, new in zip(wanted, made[::2]):
        old = old[:1] if form.startswith("gray") else old  # grey is stored with empty chroma
        for a, b in zip(old, new):
            np.testing.assert_array_equal(a, b[: a.shape[0], : a.shape[1]])


@pytest.mark.parametrize(
    "codec, form, out, says",
    [
        ("ffv1", "yuv420p12le", "out.mp4", "12 bits become 10, the nearest that libx264 has"),
        ("ffv1", "yuva420p", "out.mp4", "out.mp4 has no transparency"),
        ("ffv1", "bgr0", "out.mp4", "RGB as its source, which few players show (--pixels yuv420p"),
        ("libx264", "yuv420p", "out.mp4", ""),
    ],
)
def test_what_a_codec_cannot_keep_is_said_in_one_line(run, capsys, codec, form, out, says):
    encode("in.mkv", pan(2), codec, form)
    run("in.mkv", "-o", out)
    lines = [x for x in capsys.readouterr().err.splitlines() if "mv2: warning" in x]
    assert len(lines) == bool(says) and says in "".join(lines)


@pytest.mark.parametrize(
    "codec, out",
    [
        ("h264", "mp4"),
        ("hevc", "mov"),
        ("av1", "mkv"),
        ("vp9", "webm"),
        ("prores", "mov"),
        ("ffv1", "mkv"),
    ],
)
def test_codecs_write_what_they_say(run, codec, out):
    encode("in.mp4", pan(3))
    run("in.mp4", "-o", f"out.{out}", "--codec", codec)
    with av.open(f"out.{out}") as container:
        context = container.streams.video[0].codec_context
        assert context.codec.canonical_name == codec
        if codec == "hevc":
            assert context.codec_tag == "hvc1"
        assert sum(1 for _ in container.decode(video=0)) == 5


def transport(path, pixels):
    return encode(path, pixels, container="mpegts", g="5")


def test_hardware_that_is_not_there_is_said_before_the_work(run, monkeypatch, capsys):
    def absent(*_):
        raise av.error.PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(codecs, "_HARDWARE", re.compile("libx264"))
    monkeypatch.setattr(codecs.Encoder, "opened", absent)
    encode("in.mp4", pan(2))
    capsys.readouterr()
    run("in.mp4", "-o", "out.mp4", code=2)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("mv2: error: --codec libx264: FFmpeg cannot open it on this machine (")


def test_joined_transport_streams_become_one_video(run, capsys):
    transport("a.ts", pan(10))
    content = (open("a.ts", "rb").read()) * 2
    open("in.ts", "wb").write(content)
    run("in.ts", "-o", "out.mp4")
    found, whole = shown("out.mp4")
    assert len(found) == 39 and whole == 2
    assert "left out" not in capsys.readouterr().err


def test_lost_packets_are_said_and_with_strict_refused(run, capsys):
    transport("a.ts", pan(20, 96, 128))
    data = bytearray(open("a.ts", "rb").read())
    middle = len(data) // 188 // 2 * 188
    del data[middle : middle + 3 * 188]
    open("in.ts", "wb").write(data)
    run("in.ts", "-o", "out.mp4")
    assert "packets are damaged; what can be decoded is used" in capsys.readouterr().err
    assert len(shown("out.mp4")[0]) >= 33
    run("in.ts", "-o", "strict.mp4", "--strict", code=2)
    assert "packets are damaged" in capsys.readouterr().err


def test_a_file_cut_short_is_used_as_far_as_it_goes(run, capsys):
    encode("whole.mkv", pan(30, 96, 128), "ffv1")
    content = open("whole.mkv", "rb").read()
    open("in.mkv", "wb").write(content[: len(content) * 2 // 3])
    run("in.mkv", "-o", "out.mp4")
    assert "it is cut short" in capsys.readouterr().err
    assert 30 < len(shown("out.mp4")[0]) < 45
    run("in.mkv", "-o", "strict.mp4", "--strict", code=2)


def test_another_size_in_the_middle_is_scaled(run, capsys):
    transport("a.ts", pan(5)), transport("b.ts", pan(5, 96, 128))
    open("in.ts", "wb").write(open("a.ts", "rb").read() + open("b.ts", "rb").read())
    run("in.ts", "-o", "out.mp4")
    assert "5 frames of 128x96 are scaled to the size of the first" in capsys.readouterr().err
    assert all(s[0].shape == (48, 64) for s in stored("out.mp4")[1])
    assert len(shown("out.mp4")[0]) == 19


def test_interlaced_video_is_deinterlaced_and_it_is_said(run, capsys):
    wide = pan(12, step=6)
    woven = wide[0::2].copy()
    woven[:, 1::2] = wide[1::2, 1::2]
    encode("in.mp4", woven, **{"flags": "+ilme+ildct", "x264-params": "tff=1"})
    run("in.mp4", "-o", "out.mp4", "--times", 1, "--crf", 0)
    assert "6 interlaced frames were deinterlaced (bwdif)" in capsys.readouterr().err

    def comb(planes):
        luma = planes[0].astype(int)
        return np.abs(luma[1:-1] * 2 - luma[:-2] - luma[2:]).mean()

    before, after = stored("in.mp4")[1], stored("out.mp4")[1]
    assert len(after) == 6
    assert comb(after[3]) < comb(before[3]) / 3


@pytest.mark.parametrize(("name", "same"), [("h265", "hevc"), ("libx265", "hevc"), ("avc", "h264")])
def test_other_names_of_a_codec(name, same):
    assert codecs.find(name, ".mp4") == codecs.find(same, ".mp4")
