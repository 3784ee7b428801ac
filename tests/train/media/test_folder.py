"""Folders as the usual tools lay them: which file, which captions, which part of it."""

import csv
import json

import media_clips
import pytest

from mv2_jax.errors import InputError
from mv2_jax.train.media.decode import probe
from mv2_jax.train.media.folder import Folder
from mv2_jax.train.media.settings import check, data


def listed(folder, **settings):
    made = Folder(check(data(root=str(folder), **settings)))
    return {made.name(n): list(made.captions(n)) for n in range(len(made))}


def touch(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")


def test_captions_beside_the_files(tmp_path):
    touch(tmp_path, "a/one.mp4", "a/two.png", "three.jpg", "four.webm", ".hidden/five.mp4")
    (tmp_path / "a/one.txt").write_text("first\n\nsecond  caption\n")
    (tmp_path / "a/two.caption").write_text("a picture")
    (tmp_path / "three.json").write_text(json.dumps({"url": "u", "caption": "from JSON"}))
    assert listed(tmp_path) == {
        "a/one.mp4": ["first", "second caption"],
        "a/two.png": ["a picture"],
        "three.jpg": ["from JSON"],
        "four.webm": [],
    }


def test_json_lines_and_imagefolders(tmp_path):
    touch(tmp_path, "x/a.png", "b.mp4")
    rows = [{"file_name": "x/a.png", "text": "A"}, {"file_name": "b.mp4", "text": ["B", "BB"]}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert listed(tmp_path) == {"x/a.png": ["A"], "b.mp4": ["B", "BB"]}


def test_webvid(tmp_path):
    touch(tmp_path, "000001_000050/1234.mp4")
    with open(tmp_path / "results.csv", "w") as file:
        writer = csv.writer(file)
        writer.writerow(["videoid", "contentUrl", "duration", "page_dir", "name"])
        writer.writerow(["1234", "https://x", "PT00H00M10S", "000001_000050", "A dog, running"])
        writer.writerow(["99", "https://x", "PT00H00M10S", "000001_000050", "not here"])
    made = Folder(check(data(root=str(tmp_path))))
    assert made.name(0) == "000001_000050/1234.mp4" and made.captions(0) == ("A dog, running",)
    assert len(made) == 1 and made.missing == ["99"]


def test_panda_70m(tmp_path):
    touch(tmp_path, "videos/abc.mp4")
    with open(tmp_path / "train.csv", "w") as file:
        writer = csv.writer(file)
        writer.writerow(["videoID", "url", "timestamp", "caption", "matching_score"])
        spans = "[['0:00:01.500', '0:00:04.000'], ['0:01:00.000', '0:01:02.500']]"
        writer.writerow(["abc", "https://x", spans, "['It is a cat.', 'A car.']", "[0.4, 0.5]"])
    made = Folder(check(data(root=str(tmp_path))))
    assert [made.span(n) for n in range(2)] == [(1.5, 4.0), (60.0, 62.5)]
    assert [made.captions(n) for n in range(2)] == [("It is a cat.",), ("A car.",)]
    assert made.name(1) == "videos/abc.mp4 [60-62.5 s]"


def test_laion_tsv_and_own_columns(tmp_path):
    touch(tmp_path, "images/0.jpg")
    (tmp_path / "list.tsv").write_text("where\tTEXT\twords\nimages/0.jpg\tusual\tmine\n")
    with pytest.raises(InputError, match=r"list.tsv, row 1: which of where, TEXT, words.*file_key"):
        listed(tmp_path)
    assert listed(tmp_path, file_key="where") == {"images/0.jpg": ["usual"]}
    assert listed(tmp_path, file_key="where", caption_key="words") == {"images/0.jpg": ["mine"]}
    with pytest.raises(InputError, match="there is no 'wher' among"):
        listed(tmp_path, file_key="wher")


def test_kohya(tmp_path):
    touch(tmp_path, "2_red_dog/a.png", "1_cat/b.png")
    (tmp_path / "1_cat/b.txt").write_text("own words")
    made = Folder(check(data(root=str(tmp_path), repeats=True)))
    found = [(made.name(n), *made.captions(n)) for n in range(len(made))]
    assert found == [
        ("1_cat/b.png", "own words"),
        ("2_red_dog/a.png", "red dog"),
        ("2_red_dog/a.png", "red dog"),
    ]
    (tmp_path / "meta_cap.json").write_text(json.dumps({"1_cat/b": {"caption": "by list"}}))
    assert listed(tmp_path) == {"1_cat/b.png": ["by list"]}


def test_an_address_is_read_through_fsspec(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    media_clips.clips(tmp_path, 1, 1)
    for path in tmp_path.iterdir():
        system.pipe_file(f"/own/{path.name}", path.read_bytes())
    made = Folder(check(data(root="memory://own")))
    assert sorted(made.name(n) for n in range(2)) == ["picture0.png", "video0.mp4"]
    with made.peek(0) as file:
        assert probe(file) == probe(made.content(0)) == probe(str(tmp_path / made.name(0)))
    with made.peek(1) as file:
        assert probe(file) == probe(str(tmp_path / made.name(1)))
    assert made.content(0) == (tmp_path / made.name(0)).read_bytes()
    assert listed("memory://own") == listed(tmp_path)


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match=r"--set data.root=PATH"):
        listed("")
    with pytest.raises(InputError, match="there is no folder"):
        listed(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no clips or pictures in"):
        listed(tmp_path)
    touch(tmp_path, "a.mp4")
    with pytest.raises(InputError, match=r"cannot read none.csv: no such file"):
        listed(tmp_path, captions="none.csv")
    (tmp_path / "list.jsonl").write_text("{not json")
    with pytest.raises(InputError, match=r"list.jsonl is damaged"):
        listed(tmp_path)
    (tmp_path / "list.jsonl").write_text('{"file": "b.mp4", "caption": "x"}')
    with pytest.raises(InputError, match=r"list.jsonl lists no file of .* \(such as 'b.mp4'\)"):
        listed(tmp_path)
    (tmp_path / "list.jsonl").rename(tmp_path / "list.json").write_text('{"schema": 1}')
    with pytest.raises(InputError, match=r"list.json is no list of files and captions"):
        listed(tmp_path)


def test_settings_that_cannot_be_are_told():
    with pytest.raises(InputError, match="did you mean 'fps'"):
        data(fsp=3)
    with pytest.raises(InputError, match="use random or start or middle"):
        check(data(clip="radnom"))
    with pytest.raises(InputError, match="it is a share"):
        check(data(flip=1.5))
    with pytest.raises(InputError, match="must be 1 or more"):
        check(data(threads=0))
    with pytest.raises(InputError, match=r"data.mix: name each source as"):
        check(data(mix=(3,)))
    with pytest.raises(InputError, match=r"data.mix: .*did you mean 'weight'"):
        check(data(mix=({"root": "x", "wieght": 1},)))
