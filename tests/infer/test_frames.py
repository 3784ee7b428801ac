"""What a file may be without any reader of videos here minding, and which way up its frames are."""

from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from mv2_jax import cli
from mv2_jax.infer import frames, media
from mv2_jax.train import videos


def interpolated(path):
    out = path.with_name("out:1.mp4")
    assert cli.main(["interpolate", str(path), "-o", str(out), "--vfi", "none"]) == 0
    assert media.read_video(out, (48, 64), 5, 0.05).shape == (5, 48, 64, 3)


READERS = {
    "interpolate": interpolated,
    "media": lambda path: media.read_video(path, (48, 64), 3, 0.1),
    "train": lambda path: videos.draw(videos.find(path.parent, 48), 0, np.arange(2), 48, (2, 2)),
}


def test_what_lies_beside_a_picture_is_found_whichever_way_the_container_counts():
    """PyAV 19 goes through types and counts each once; earlier ones through all values."""
    kinds = (1, 1, 2, 3)
    values = [SimpleNamespace(type=kind, number=i) for i, kind in enumerate(kinds)]

    class Types(dict):
        def __getitem__(self, key):
            return values[key]

    for held in (values, Types.fromkeys(kinds)):
        found = frames.side_of(SimpleNamespace(side_data=held))
        assert {kind: value.number for kind, value in found.items()} == {1: 1, 2: 2, 3: 3}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["title.mkv", "title.mp4", "2024-01-01T10:00:00.mkv"])
def test_titles_and_names_of_any_kind_are_no_hindrance(tmp_path, monkeypatch, reader, name):
    monkeypatch.chdir(tmp_path)  # a name without a folder is what FFmpeg takes for a protocol
    path = tmp_path / name
    with av.open(f"file:{path}", "w") as out:
        out.metadata["title"] = "Zurich"
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(3):
            pixels = np.full((48, 64, 3), 40 + 9 * k, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())
    content = path.read_bytes()
    assert content.count(b"Zurich") == 1
    path.write_bytes(content.replace(b"Zurich", b"Z\xfcrich"))  # Latin-1
    READERS[reader](path.relative_to(tmp_path) if reader != "train" else path)


@pytest.mark.parametrize(
    "pts, dts, last, wanted",
    [
        (7, 5, 1, 7),
        (7, 5, 8, 7),  # a step back is the caller's to see
        (None, 5, 1, 5),
        (None, 5, 5, 6),
        (None, None, 5, 6),
        (None, 5, None, 5),
        (None, None, None, None),
    ],
)
def test_a_frame_is_shown_when_its_file_says_or_the_decoder_gave_it(pts, dts, last, wanted):
    frame = SimpleNamespace(pts=pts, dts=dts, duration=0, time_base=None)
    stream = SimpleNamespace(time_base=Fraction(1, 10))
    last = None if last is None else Fraction(last, 10)
    wanted = None if wanted is None else Fraction(wanted, 10)
    assert frames.time_of(frame, stream, last, Fraction(1, 10)) == wanted


@pytest.mark.parametrize("columns", [(1, 0), (0, 1), (-1, 0), (0, -1)])
@pytest.mark.parametrize("handed", [1, -1])
def test_every_display_matrix_puts_pixels_where_it_says(columns, handed):
    (a, b), scale = columns, 1 << 16
    c, d = -b * handed, a * handed
    matrix = np.array([a * scale, b * scale, 0, c * scale, d * scale, 0, 0, 0, 1 << 30], np.int32)
    frame = SimpleNamespace(side_data={frames.Type.DISPLAYMATRIX: matrix})
    picture = np.arange(6).reshape(2, 3)
    shown = frames.upright(picture, *frames.turns_of(frame))
    rows, columns = np.mgrid[:2, :3]
    across, down = a * columns + c * rows, b * columns + d * rows
    np.testing.assert_array_equal(shown[down - down.min(), across - across.min()], picture)
