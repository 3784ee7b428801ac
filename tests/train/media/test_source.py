"""Samples of a folder, step by step: complete, repeatable, whoever reads them."""

import itertools

import media_clips
import numpy as np
import pytest
from clips import encode, pan

from mv2_jax.errors import InputError
from mv2_jax.train.media import samples
from mv2_jax.train.media.settings import data
from mv2_jax.train.media.source import Media
from mv2_jax.train.media.turns import Turn

TURNS = (Turn((4, 8), (32, 32), 4, (0, 1)), Turn((1,), (32, 32), 3, (2,)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return media_clips.clips(tmp_path_factory.mktemp("files") / "clips", 5, 4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def steps(source, count, start=0, rows=np.arange, turns=TURNS):
    """[(step, [(caption, pixels, size_ids)])] of so many steps."""
    found = source.stream(turns, rows, 8, 0, start)
    return [
        (
            step,
            [(s.caption, *(s.arrays[n].tolist() for n in ("pixels", "size_ids"))) for s in rows_],
        )
        for step, rows_ in itertools.islice(found, count)
    ]


def media(folder, **settings):
    settings = {"root": str(folder), "crop": "random", "flip": 0.5, "threads": 3, **settings}
    return Media(data(**settings), 0)


def test_a_resumed_run_and_other_processes_see_the_same_samples(folder):
    whole = steps(media(folder), 9)
    assert steps(media(folder, threads=1, ahead=5), 5, start=4) == whole[4:]
    # Two processes, each its own rows, whichever these are.
    halves = [steps(media(folder), 9, rows=lambda n, k=k: np.arange(n)[k::2]) for k in range(2)]
    for (step, all_), (_, even), (_, odd) in zip(whole, *halves):
        assert all_[0::2] == even and all_[1::2] == odd, step
    shapes = [np.shape(rows[0][1]) for _, rows in whole[:3]]
    assert shapes == [(8, 32, 32, 3), (8, 32, 32, 3), (1, 32, 32, 3)]


def test_an_epoch_shows_every_clip_and_both_captions(folder):
    source = media(folder)
    clips = steps(source, 60, turns=[TURNS[0]])
    said = [caption for _, rows in clips for caption, *_ in rows]
    for epoch in range(len(said) // 5):
        numbers = [text.split()[-1] for text in said[5 * epoch : 5 * epoch + 5]]
        assert sorted(numbers) == list("01234")
    assert {text for text in said if text.endswith("0")} == {"clip 0", "another word for clip 0"}
    assert len({str(pixels) for _, rows in clips for _, pixels, _ in rows}) > 100  # parts, cuts


def test_draws_repeat_after_as_many_visits_as_are_asked_for(folder):
    found = steps(media(folder, passes=2), 20, turns=[Turn((4,), (32, 32), 5)])
    visits = [{c.split()[-1]: (c, p) for c, p, _ in rows} for _, rows in found]
    assert visits[0] == visits[2] == visits[18] and visits[1] == visits[3] != visits[0]


def test_pictures_and_clips_get_the_size_nearest_to_their_shape(folder):
    source = media(folder, aspects=True, aspect_step=16)
    buckets = source.buckets(Turn((1,), (64, 64), 4), 8)
    shapes = {size: [source.parts[0].records.name(n) for n in held[0]]
              for (_, size), held in buckets.items()}  # fmt: skip
    assert shapes == {(48, 80): ["picture0.png", "picture2.png"],
                      (64, 64): ["picture1.png", "picture3.png"]}  # fmt: skip
    sizes = samples.sizes_of((64, 64), source.data, 8)
    assert all(h * w <= 64 * 64 and max(h, w) <= 2 * min(h, w) for h, w in sizes)
    assert all(side % 16 == 0 for size in sizes for side in size)


def test_size_conditions_are_those_of_the_cut(folder):
    ((_, rows),) = steps(media(folder, crop="random"), 1, turns=[Turn((1,), (32, 32), 4)])
    for _, _, six in rows:
        height, width, top, left, *wanted = six
        assert (height, width) in ((64, 96), (64, 64)) and wanted == [32, 32] and top == 0
        assert 0 <= left <= round(width / 2) - 32
    assert len({six[3] for _, _, six in rows}) > 1
    (_, rows), *_ = steps(media(folder, crop="centre"), 1, turns=[Turn((1,), (32, 32), 4)])
    assert {(w, left) for _, _, (_, w, _, left, *_) in rows} == {(96, 8), (64, 0)}


def test_frames_are_taken_at_the_pace_that_is_asked_for(folder):
    path = folder / "video0.mp4"
    whole = media_clips.frames_of(path)
    for settings, apart in (({"fps": 4.0}, 2), ({"fps": 0.0, "stride": 3}, 3), ({"fps": 8.0}, 1)):
        source = media(folder, clip="start", flip=0.0, crop="centre", **settings)
        number = [source.parts[0].records.name(n) for n in range(10 - 1)].index("video0.mp4")
        made = samples.sample(source.parts[0], number, 4, (48, 64), np.random.default_rng(0))
        np.testing.assert_array_equal(made.arrays["pixels"], whole[: 4 * apart : apart])


def test_lengths_are_the_longest_that_a_file_has(folder):
    turn = Turn((4, 20, 24), (32, 32), 4)  # videos have 20, 24, 28, 32 and 36 frames
    buckets = media(folder).buckets(turn, 8)
    assert {frames: len(held[0]) for (frames, _), held in buckets.items()} == {20: 1, 24: 4}
    with pytest.raises(InputError, match=r"long enough for .* data.fps 0.5"):
        next(media(folder, fps=0.5).stream([turn], np.arange, 8, 0, 0))


def test_mixed_sources_by_their_weights(folder, tmp_path):
    other = media_clips.clips(tmp_path / "other", 2, 0)
    for path in other.glob("*.txt"):
        path.write_text("of the other")
    mix = ({"root": str(folder), "weight": 3.0}, {"root": str(other), "weight": 1.0})
    found = steps(media("", mix=mix), 50, turns=[TURNS[0]])
    said = [caption for _, rows in found for caption, *_ in rows]
    assert said.count("of the other") == pytest.approx(len(said) / 4, abs=2)
    with pytest.raises(InputError, match="all of the sources a weight, or none"):
        media("", mix=({"root": str(folder), "weight": 3.0}, {"root": str(other)}))


def test_broken_files_are_skipped_counted_and_named(tmp_path, capsys):
    folder = media_clips.clips(tmp_path / "clips", 3, 0)
    (folder / "bad.mp4").write_bytes(b"no video")
    (folder / "mute.mp4").write_bytes((folder / "video0.mp4").read_bytes())
    source = media(folder)
    said = capsys.readouterr().out
    assert "2 of 5 files are left out" in said and source.length == 3
    assert "bad.mp4 (it is damaged, or no video)" in said
    assert "mute.mp4 (it has no caption)" in said
    assert media(folder).length == 3 and media(folder, captioned=False).length == 4  # kept, too
    # Damaged since, and so found when it is decoded: others stand in, the same ones every time.
    whole = (folder / "video1.mp4").read_bytes()
    (folder / "video1.mp4").write_bytes(whole[: len(whole) // 3] + bytes(2 * len(whole) // 3))
    first, again = (steps(media(folder, threads=t), 6, turns=[TURNS[0]]) for t in (4, 1))
    assert first == again and not any(c.endswith("1") for _, rows in first for c, *_ in rows)
    assert capsys.readouterr().out.count("video1.mp4 is left out") == 2  # once a run


def test_a_file_that_is_broken_in_part_changes_nothing_when_a_run_is_resumed(tmp_path):
    folder = media_clips.clips(tmp_path / "clips", 2, 0)
    path = folder / "video1.mp4"
    path.unlink()
    # Every frame a keyframe, and those in the middle gone.
    encode(path, pan(40, 48, 64), fps=8, g="1")
    source, whole = media(folder), bytearray(path.read_bytes())
    first, last = (len(whole) * share // 100 for share in (45, 70))
    whole[first:last] = bytes(last - first)
    path.write_bytes(bytes(whole))
    turns = [Turn((4,), (32, 32), 2)]
    whole_run = steps(source, 12, turns=turns)
    said = [caption for _, rows in whole_run for caption, *_ in rows]
    ones = sum(caption.endswith("1") for caption in said)
    assert 0 < ones < len(said) // 2 and source.parts[0].failed
    for start in (5, 9):
        assert steps(fresh(source), 12 - start, start, turns=turns) == whole_run[start:]


def fresh(source):
    """As a new process would have it, which has met no broken file."""
    for part in source.parts:
        part.failed.clear()
    return source


def test_nothing_left_stops_at_once_with_one_line(tmp_path):
    folder = media_clips.clips(tmp_path / "clips", 2, 0)
    source = media(folder)
    for path in folder.glob("*.mp4"):
        path.write_bytes(b"gone")
    with pytest.raises(
        InputError, match=r"none of the files of .* can be decoded: 2 of 2 .*video0.mp4 \([^-]*$"
    ):
        next(source.stream(TURNS[:1], np.arange, 8, 0, 0))
    (folder / "other.mp4").write_bytes(b"new facts")
    with pytest.raises(InputError, match=r"nothing in .* can be used: 3 of 3 files are left out"):
        media(folder)
