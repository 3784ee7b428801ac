import struct

import av
import numpy as np
import pytest
from PIL import Image

from mv2_jax.errors import InputError
from mv2_jax.infer import media


def clip(frames=10, height=48, width=64):
    """Smooth colours that change with the frame: blue is 20 times its number."""
    y, x = np.mgrid[:height, :width]
    return np.stack(
        [
            np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 20 * t)], axis=-1)
            for t in range(frames)
        ]
    ).astype(np.uint8)


def distance(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean()


def test_uint8_and_float_are_inverses():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(media.to_uint8(media.to_float(levels)), levels)
    np.testing.assert_array_equal(
        media.to_uint8([-7.0, -1.0, 0.0, 1.0, 9.0]), [0, 0, 128, 255, 255]
    )


def test_fit_covers_the_size_and_cuts_evenly():
    image = clip(1, 40, 100)[0]
    np.testing.assert_array_equal(media.fit(image, (40, 40)), image[:, 30:70])
    assert media.fit(image, (17, 90)).shape == (17, 90, 3)
    assert media.fit(image, (40, 100)) is image


@pytest.mark.parametrize("height, width", [(48, 64), (47, 64), (47, 63)])
def test_video_survives_writing_and_reading(tmp_path, height, width):
    frames = clip(10, height, width)
    media.write_video(tmp_path / "v.mp4", frames, 8)
    read = media.read_video(tmp_path / "v.mp4", (height + height % 2, width + width % 2), 10, 1 / 8)
    assert distance(read[:, :height, :width], frames) < 2.0  # measured 1.1 to 1.6
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_video_is_what_browsers_play(tmp_path):
    frames = np.empty((6, 64, 64, 3), np.uint8)
    frames[:] = (220, 30, 60)
    media.write_video(tmp_path / "v.mp4", frames, 7.5)
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
        tags = (context.color_primaries, context.color_trc, context.colorspace, context.color_range)
        assert tags == (1, 1, 1, 1)
        assert stream.average_rate == 7.5 and stream.frames == 6
        luma = next(container.decode(stream)).to_ndarray()[30, 30]
    assert luma == 78  # BT.709 limited range; BT.601 would be 93
    content = (tmp_path / "v.mp4").read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")


def test_equal_frames_give_equal_files(tmp_path):
    made = set()
    for _ in range(12):  # with x264's defaults, about one in six differs
        media.write_video(tmp_path / "v.mp4", clip(), 8)
        made.add((tmp_path / "v.mp4").read_bytes())
    assert len(made) == 1


def test_frames_are_taken_in_real_time_or_spread_over_a_short_video(tmp_path):
    media.write_video(tmp_path / "v.mp4", clip(10), 8)

    def numbers(frames, interval):
        taken = media.read_video(tmp_path / "v.mp4", (48, 64), frames, interval)
        return np.round(taken[:, 20, 20, 2] / 20).astype(int).tolist()

    assert numbers(3, 2 / 8) == [0, 2, 4]
    assert numbers(3, 0.3) == [0, 2, 4]  # the frames on show at 0, 0.3 and 0.6 seconds
    assert numbers(4, 1.0) == [0, 3, 6, 9]
    assert numbers(1, 1.0) == [0]


@pytest.mark.parametrize(
    "matrix, turned",
    [
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
        ((1, 0, 0, -1), lambda x: x[::-1]),
        ((0, -1, -1, 0), lambda x: np.rot90(x.swapaxes(0, 1), 2)),
    ],
)
def test_a_turned_or_mirrored_video_comes_upright(tmp_path, matrix, turned):
    path = tmp_path / "v.mp4"
    frames = clip(2)
    media.write_video(path, frames, 8)
    content = bytearray(path.read_bytes())
    place = content.find(b"tkhd") + 4 + 40
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    assert content[place : place + 36] == upright
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    wanted = turned(frames[0])
    read = media.read_video(path, wanted.shape[:2], 1, 1.0)
    assert distance(read[0], wanted) < 3.0


@pytest.mark.parametrize("name", ["v.avi", "v.mpg", "v.h264"])
def test_frames_come_in_order_where_the_file_keeps_no_times_of_showing(tmp_path, name):
    with av.open(str(tmp_path / name), "w") as out:
        stream = out.add_stream("mpeg2video" if name == "v.mpg" else "libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate, stream.options = 8_000_000, {"bf": "2", "b_strategy": "0"}
        for pixels in clip(12):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())
    read = media.read_video(tmp_path / name, (48, 64), 12, 10.0)
    np.testing.assert_array_equal(np.round(read[:, 20, 20, 2] / 20), range(12))


def test_pictures_of_every_kind_are_read(tmp_path):
    image = clip(1)[0]
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(image)))
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me a quarter clockwise"
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(media.read_image(tmp_path / "turned.png"), image)

    clear = np.dstack([image, np.zeros(image.shape[:2], np.uint8)])
    clear[:, :32, 3] = 255
    Image.fromarray(clear).save(tmp_path / "clear.png")
    read = media.read_image(tmp_path / "clear.png")
    np.testing.assert_array_equal(read[:, :32], image[:, :32])
    assert (read[:, 32:] == 255).all()

    deep = (image[..., 0].astype(np.uint16)) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(media.read_image(tmp_path / "deep.png")[..., 1], image[..., 0])

    for span in (1.0, 255.0):  # grey levels of a TIFF of numbers, and shares of one
        Image.fromarray(np.full((40, 40), 0.8 * span, np.float32)).save(tmp_path / "f.tiff")
        assert (media.read_image(tmp_path / "f.tiff") == 204).all()

    for mode in ("L", "P", "CMYK", "1", "LA"):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.fromarray(image).convert(mode).save(tmp_path / f"{mode}.{suffix}")
        assert media.read_image(tmp_path / f"{mode}.{suffix}", (32, 32)).shape == (32, 32, 3)


def broken_files(folder):
    media.write_image(folder / "good.png", clip(1)[0])
    media.write_video(folder / "good.mp4", clip(), 8)
    Image.fromarray(np.zeros((3, 900, 3), np.uint8)).save(folder / "thin.png")
    (folder / "empty").touch()
    (folder / "text").write_text("this is not a picture\n" * 50)
    for name in ("png", "mp4"):
        content = (folder / f"good.{name}").read_bytes()
        (folder / f"cut.{name}").write_bytes(content[: len(content) // 2])
    (folder / "folder").mkdir()


@pytest.mark.parametrize("form", ["gray", "gray10le"])
@pytest.mark.parametrize("span, levels", [(0, (16, 235)), (1, (0, 255)), (2, (16, 235))])
def test_grey_in_limited_range_is_black_to_white(tmp_path, form, span, levels):
    path, scale = tmp_path / "grey.mkv", 1 if form == "gray" else 4
    ramp = np.repeat([[16 * scale], [235 * scale]], 32, axis=1).repeat(16, axis=0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8, width=32, height=32)
        stream.pix_fmt, stream.codec_context.color_range = form, span
        frame = av.VideoFrame.from_ndarray(ramp.astype(np.uint8 if scale == 1 else np.uint16), form)
        frame.color_range = span
        container.mux([*stream.encode(frame), *stream.encode()])
    seen = media.read_video(path, (32, 32), 1, 0.1)[0]
    np.testing.assert_allclose(seen[:16], levels[0], atol=1)
    np.testing.assert_allclose(seen[16:], levels[1], atol=1)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("none", "no such file"),
        ("empty", "cannot read"),
        ("text", "cannot read"),
        ("cut.{}", "cannot read"),
        ("folder", "is a directory"),
    ],
)
@pytest.mark.parametrize("kind", ["png", "mp4"])
def test_bad_files_get_one_clear_line(tmp_path, name, reason, kind):
    broken_files(tmp_path)
    path = tmp_path / name.format(kind)
    with pytest.raises(InputError, match=reason) as error:
        if kind == "png":
            media.read_image(path)
        else:
            media.read_video(path, (32, 32), 3, 0.1)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_impossible_sizes_are_refused(tmp_path):
    broken_files(tmp_path)
    with pytest.raises(InputError, match="900x3 pixels is too small"):
        media.read_image(tmp_path / "thin.png")
    media.write_video(tmp_path / "small.mp4", clip(2, 8, 64), 8)
    with pytest.raises(InputError, match="64x8 pixels is too small"):
        media.read_video(tmp_path / "small.mp4", (32, 32), 1, 1)


def test_a_damaged_middle_is_not_concealed(tmp_path):
    rng = np.random.default_rng(0)
    media.write_video(tmp_path / "v.mp4", rng.integers(0, 256, (12, 64, 64, 3), np.uint8), 8)
    content = bytearray((tmp_path / "v.mp4").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        media.read_video(tmp_path / "v.mp4", (64, 64), 12, 1 / 8)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"old")
    with pytest.raises(IndexError):  # from the encoder, the file already open
        media.write_video(path, np.zeros((2, 0, 0, 3), np.uint8), 8)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_contact_sheet_shows_frames_in_reading_order():
    frames = np.zeros((6, 20, 20, 3), np.uint8)
    frames[:] = 10 * np.arange(6)[:, None, None, None]
    sheet = media.contact_sheet(frames)
    assert sheet.shape == (2 * 24 + 4, 3 * 24 + 4, 3)
    assert [int(sheet[10 + 24 * (k // 3), 10 + 24 * (k % 3), 0]) for k in range(6)] == [
        0, 10, 20, 30, 40, 50,
    ]  # fmt: skip
    assert (sheet[:4] == 255).all()


def test_contact_sheet_stays_small():
    sheet = media.contact_sheet(np.zeros((94, 600, 300, 3), np.uint8))
    assert max(sheet.shape) < 2000
