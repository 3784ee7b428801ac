"""Folders of pictures, GIF and WebP, in and out of `mv2 interpolate`."""

from fractions import Fraction

import av
import numpy as np
import pytest
from clips import encode, pan, shown, stored
from PIL import Image, ImageSequence

from mv2_jax import cli


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command with nearest pictures in the network's place, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0):
        assert cli.main(["interpolate", "--vfi", "none", *map(str, words)]) == code

    return run


def pictures(folder, pixels, name="p{}.png"):
    folder.mkdir()
    for k, picture in enumerate(pixels, start=8):  # 8, 9, 10, 11: not in the order of letters
        Image.fromarray(picture).save(folder / name.format(k))


@pytest.mark.parametrize("name", ["p{}.png", "{}.bmp"])
def test_a_folder_becomes_a_folder_with_its_pictures_in_it(run, tmp_path, name):
    pixels = pan(4, 47, 63)
    pictures(tmp_path / "in", pixels, name)
    run("in", "--pace", 10, "-o", "out")
    made = [np.asarray(Image.open(p)) for p in sorted((tmp_path / "out").iterdir())]
    assert len(made) == 7 and made[0].shape == (47, 63, 3)
    np.testing.assert_array_equal(np.stack(made[::2]), pixels)
    run("in", "--pace", 10, "-o", "out.mp4", "--crf", 0)
    found, whole = shown("out.mp4")
    assert len(found) == 7 and float(whole) == 0.4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out", "out.mp4"]


def test_sixteen_bits_of_a_png_stay(run, tmp_path):
    levels = np.random.default_rng(0).integers(0, 65536, (2, 20, 24, 3), dtype=np.uint16)
    (tmp_path / "in").mkdir()
    for k, picture in enumerate(levels):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb48le").reformat(format="rgb48be")
        context = av.CodecContext.create("png", "w")
        context.width, context.height, context.pix_fmt = 24, 20, "rgb48be"
        context.time_base = Fraction(1, 25)
        frame.pts = 0
        data = [*context.encode(frame), *context.encode(None)]
        (tmp_path / "in" / f"{k}.png").write_bytes(b"".join(map(bytes, data)))
    run("in", "--pace", 5, "-o", "out")
    for k, name in ((0, "frame-000001.png"), (1, "frame-000003.png")):
        with av.open(str(tmp_path / "out" / name)) as container:
            back = next(container.decode(video=0)).reformat(format="rgb48le").to_ndarray()
        np.testing.assert_array_equal(back, levels[k])


def test_animated_webp_goes_in_and_out_with_its_times(run, tmp_path):
    first = [Image.fromarray(x) for x in pan(3)]
    first[0].save("in.webp", save_all=True, append_images=first[1:], lossless=True,
                  duration=[100, 200, 900])  # fmt: skip
    run("in.webp", "-o", "out.webp", "--times", 1, "--crf", 0)
    with Image.open("out.webp") as image:
        back = [(e.info["duration"], np.asarray(e.convert("RGB")))
                for e in ImageSequence.Iterator(image) if e.load() or True]  # fmt: skip
    assert [lasts for lasts, _ in back] == [100, 200, 900]
    for old, (_, new) in zip(first, back):
        np.testing.assert_array_equal(np.asarray(old), new)
    run("in.webp", "-o", "out.mp4")
    assert len(shown("out.mp4")[0]) == 5 and float(shown("out.mp4")[1]) == 1.2


def test_a_gif_has_a_palette_for_each_picture_and_its_last_ones_time(run, tmp_path, capsys):
    encode("in.mp4", pan(4))
    run("in.mp4", "-o", "out.gif", "--fps", 25)
    with Image.open("out.gif") as image:
        back = [(e.info["duration"], np.asarray(e.convert("RGB"), np.float32))
                for e in ImageSequence.Iterator(image)]  # fmt: skip
    assert sum(lasts for lasts, _ in back) == 400
    source = av.open("in.mp4")
    given = next(source.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(back[0][1] - given).mean() < 8
    run("in.mp4", "-o", "fast.gif", "--fps", 60)
    assert "most browsers show no more than 50" in capsys.readouterr().err
    assert stored("fast.gif")[1]


@pytest.mark.parametrize(
    "words, says",
    [
        (["in", "-o", "out"], "--pace says how many a second"),
        (["empty", "--pace", "5"], "holds no pictures"),
        (["in.mp4", "--pace", "5"], "--pace is for folders"),
        (["in", "--pace", "5", "-o", "out", "--codec", "h264"], "is not a video: --codec"),
        (["bad", "--pace", "5", "-o", "out"], "bad/1.png: it is no video, or is damaged"),
    ],
)
def test_bad_words_get_one_line(run, tmp_path, capsys, words, says):
    pictures(tmp_path / "in", pan(2))
    for name in ("empty", "bad"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"no picture")
    encode("in.mp4", pan(2))
    run(*words, code=2)
    lines = [x for x in capsys.readouterr().err.splitlines() if "mv2: error:" in x]
    assert len(lines) == 1 and says in lines[0], lines
