"""The arena: which videos meet, who sees them where, what a vote is; nothing tells sides."""

import json
import re
import sqlite3
from collections import Counter

import arena as made
import numpy as np
import pytest
from fastapi.testclient import TestClient

from mv2_jax import cli
from mv2_jax.errors import InputError
from mv2_jax.infer import media
from mv2_jax.infer.arena import app, build, pairs
from mv2_jax.infer.arena.store import CRITERIA, Arena, Taken
from mv2_jax.infer.serve import pages

LEFT = dict.fromkeys(CRITERIA, "left")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return made.arena(tmp_path_factory.mktemp("arena")), tmp_path_factory


@pytest.fixture
def arena(folders, tmp_path):
    """A fresh arena over the module's videos."""
    whole = folders[0]
    (tmp_path / "videos").symlink_to(whole.path.parent / "videos")
    copy = sqlite3.connect(tmp_path / "arena.db")
    whole._db.backup(copy)
    copy.close()
    opened = Arena(tmp_path / "arena.db")
    yield opened
    opened.close()


def client(arena):
    return TestClient(app.build(arena), base_url="http://127.0.0.1")


def clip(path, prompt=None, seed=None):
    return pairs.Clip(path, prompt, seed)


def test_videos_meet_by_prompt_and_seed_then_by_name(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    first = [
        clip(a / "0.mp4", "A red  ball!", 1),
        clip(a / "1.mp4", "a red ball", 2),
        clip(a / "2.mp4", "a star"),
        clip(a / "cube.mp4"),
        clip(a / "alone.mp4", "nobody's"),
    ]
    second = [clip(b / "x.mp4", "a red ball", 2), clip(b / "y.mp4", "a red ball", 7),
              clip(b / "a_star.mp4"), clip(b / "cube.webm"), clip(b / "other.mp4")]  # fmt: skip
    found = [(one.path.name, two.path.name) for one, two in pairs.match(first, second)]
    assert found == [("0.mp4", "y.mp4"), ("1.mp4", "x.mp4"), ("2.mp4", "a_star.mp4"),
                     ("cube.mp4", "cube.webm")]  # fmt: skip


def test_what_has_no_partner_is_said_and_damaged_sidecars_are_none(tmp_path, capsys):
    a = made.folder(tmp_path / "x/clips", made.PROMPTS, 50)
    b = made.folder(tmp_path / "y/clips", made.PROMPTS[:2], 90, sidecars=False)
    (a / "1.json").write_text("[not json")
    arena = build.make([a, b], tmp_path / "arena", 1, 0)
    said = capsys.readouterr().err
    assert "x/clips: 2 of 3 videos have no partner and are left out: 1.mp4, 2.mp4" in said
    assert "y/clips: 1 of 2" in said
    assert [row["name"] for row in arena.rows("SELECT name FROM systems")] == ["x/clips", "y/clips"]
    arena.close()


@pytest.mark.parametrize("names, said", [
    (["a"], "two folders or more"), (["a", "a"], "given twice"), (["a", "none"], "no such folder"),
    (["a", "empty"], "holds no video"), (["a", "other"], "no video of"),
    (["a", "broken"], "cannot read"), (["--report", "a"], "takes no folders"), ([], "no arena"),
])  # fmt: skip
def test_folders_that_cannot_be_compared(tmp_path, monkeypatch, names, said, capsys):
    monkeypatch.chdir(tmp_path)
    made.folder(tmp_path / "a", made.PROMPTS[:1], 50)
    made.folder(tmp_path / "other", made.PROMPTS[1:2], 50)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/0.mp4").write_bytes(b"no video")
    assert cli.main(["arena", *names]) == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "arena").exists() and not list(tmp_path.glob(".arena*"))


def test_an_arena_goes_on_with_the_same_folders_only(tmp_path, capsys):
    arena = made.arena(tmp_path)
    arena.close()
    other = made.folder(tmp_path / "other", made.PROMPTS, 10)
    out = ["-o", str(tmp_path / "arena")]
    assert cli.main(["arena", str(tmp_path / "system0"), str(other), *out]) == 2
    assert "is an arena of" in capsys.readouterr().err
    assert cli.main(["arena", "--report", *out]) == 2
    assert "nobody has voted yet" in capsys.readouterr().err
    (tmp_path / "arena/arena.db").write_bytes(b"no database")
    with pytest.raises(InputError, match="cannot read"):
        build.load(tmp_path / "arena")


def test_what_browsers_do_not_play_is_written_anew_and_the_rest_copied(tmp_path):
    import av

    clip = np.random.default_rng(0).integers(0, 255, (5, 32, 48, 3), np.uint8)
    media.write_video(tmp_path / "h264.mp4", clip, 8, {"comment": "seed 7"})
    with av.open(str(tmp_path / "old.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for pixels in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    for name in ("h264.mp4", "old.mkv"):
        build._copy(tmp_path / name, tmp_path / "copy.mp4")
        with av.open(str(tmp_path / "copy.mp4")) as video:
            assert video.streams.video[0].codec_context.name == "h264"
            assert not {"comment", "title"} & set(video.metadata)
            assert sum(1 for _ in video.decode(video=0)) == 5
    build._copy(tmp_path / "h264.mp4", tmp_path / "copy.mp4")
    np.testing.assert_array_equal(build.read_frames(tmp_path / "copy.mp4")[0],
                                  build.read_frames(tmp_path / "h264.mp4")[0])  # fmt: skip
    assert b"seed 7" not in (tmp_path / "copy.mp4").read_bytes()


def test_ballots_are_balanced_and_shared(tmp_path):
    """Of 4 systems' 6 pairs on 10 prompts: sides, overlap, gold, and who gets what."""
    arena = Arena(tmp_path / "arena.db", create=True)
    systems = range(4)
    videos = [(f"{s}-{p}", s, "") for s in systems for p in range(10)]
    compared = [("normal", f"{p}", f"{a}-{p}", f"{b}-{p}") for p in range(10) for a in systems
                for b in range(a + 1, 4)]  # fmt: skip
    compared = [("overlap", *row[1:]) if n < 6 else row for n, row in enumerate(compared)]
    gold = [("gold", "0", "0-0", "1-0"), ("gold", "1", "0-1", "1-1")]
    arena.fill([(f"s{s}", "") for s in systems], videos, compared + gold)
    tokens = [arena.add_rater(24) for _ in range(3)]
    rows = arena.rows("SELECT b.rater, b.first_left, c.kind, c.number, substr(c.first, 1, 1) || "
                      "substr(c.second, 1, 1) AS pair FROM ballots b JOIN comparisons c ON "
                      "c.number = b.comparison")  # fmt: skip
    assert [len(arena.ballots(token)) for token in tokens] == [26, 26, 26]
    given = Counter(row["number"] for row in rows)
    assert all(given[row["number"]] == 3 for row in rows if row["kind"] != "normal")
    assert all(given[row["number"]] == 1 for row in rows if row["kind"] == "normal")
    for rater in range(3):
        for pair in {row["pair"] for row in rows}:
            sides = [row["first_left"] for row in rows if row["rater"] == rater
                     and row["pair"] == pair and row["kind"] != "gold"]  # fmt: skip
            assert abs(2 * sum(sides) - len(sides)) <= 1
    orders = [[row["number"] for row in rows if row["rater"] == rater] for rater in range(3)]
    assert orders[0] != sorted(orders[0]) and len(set(tokens)) == 3
    arena.close()


def test_a_vote_counts_once_whatever_is_sent_again(arena):
    token, other = arena.add_rater(100), arena.add_rater(100)
    http, ballot = client(arena), arena.ballots(token)[0]["id"]
    at = f"/r/{token}/ballots/{ballot}"
    assert [http.post(at, json={"answers": LEFT}).status_code for _ in range(2)] == [200, 200]
    right = dict.fromkeys(CRITERIA, "right")
    assert http.post(at, json={"answers": right}).status_code == 409
    assert http.get(at).json()["answers"] == LEFT
    assert http.post(at, json={"answers": right, "change": True}).status_code == 200
    assert http.get(at).json()["answers"] == right
    assert arena.rows("SELECT COUNT(*) FROM votes")[0][0] == len(CRITERIA)
    assert http.post(f"/r/{other}/ballots/{ballot}", json={"answers": LEFT}).status_code == 404
    with pytest.raises(Taken):
        arena.vote(token, ballot, LEFT, 0.0, False)
    done = [b["done"] for b in http.get(f"/r/{token}/state").json()["ballots"]]
    assert done == [True, False, False, False]


@pytest.mark.parametrize("body", [
    {"answers": {**LEFT, "overall": "best"}}, {"answers": {"overall": "left"}}, {"answers": {}},
    {"answers": LEFT, "seconds": -1}, {"answers": LEFT, "system": "a"}, [], {"answers": None},
])  # fmt: skip
def test_answers_that_are_none(arena, body):
    token = arena.add_rater(100)
    ballot = arena.ballots(token)[0]["id"]
    answer = client(arena).post(f"/r/{token}/ballots/{ballot}", json=body)
    assert answer.status_code == 400 and answer.json()["error"]
    assert not arena.rows("SELECT * FROM votes")


def test_nothing_tells_which_side_is_which(arena):
    """What a rater's browser gets names no system, file or date, and sides are the database's."""
    token = arena.add_rater(100)
    http, seen, texts = client(arena), Counter(), []
    texts += [http.get(path).text for path in (f"/r/{token}", f"/r/{token}/state", "/")]
    for ballot in http.get(f"/r/{token}/state").json()["ballots"]:
        assert set(ballot) == {"id", "prompt", "done"}
        for side in ("left", "right"):
            answer = http.get(f"/r/{token}/ballots/{ballot['id']}/{side}")
            assert set(answer.headers) == {
                "content-length",
                "content-type",
                "accept-ranges",
                *map(str.lower, pages.HEADERS),
            }
            texts.append(answer.content.decode("latin-1") + str(answer.headers))
            row = arena.rows("SELECT b.first_left, c.first, c.second FROM ballots b JOIN "
                             "comparisons c ON c.number = b.comparison WHERE b.id = ?",
                             ballot["id"])[0]  # fmt: skip
            shown = row["first"] if bool(row["first_left"]) == (side == "left") else row["second"]
            assert answer.content == arena.video(shown).read_bytes()
            seen[side, shown] += 1
            part = http.get(f"/r/{token}/ballots/{ballot['id']}/{side}",
                            headers={"Range": "bytes=0-9"})  # fmt: skip
            assert part.status_code == 206 and len(part.content) == 10
    assert not [text for text in texts if re.search("system[01]|made by|/tmp|\\.json", text)]
    assert sum(seen.values()) == 8 and len({shown for _, shown in seen}) >= 7


@pytest.mark.parametrize("path", [
    "/r/nobody", "/r/nobody/state", "/r/{token}/ballots/none", "/r/{token}/ballots/none/left",
    "/r/{token}/ballots/{ballot}/middle", "/static/arena.html", "/static/..%2fapp.py",
    "/openapi.json", "/docs",
])  # fmt: skip
def test_addresses_where_there_is_nothing(arena, path):
    token = arena.add_rater(100)
    path = path.format(token=token, ballot=arena.ballots(token)[0]["id"])
    assert client(arena).get(path).status_code in (400, 404)


def test_other_hosts_and_sites_are_refused_at_home_and_links_work_abroad(arena):
    token = arena.add_rater(100)
    home, abroad = app.build(arena), app.build(arena, local=False)
    path = f"/r/{token}/state"
    assert TestClient(home, base_url="http://evil.example").get(path).status_code == 403
    assert client(arena).get(path, headers={"Origin": "http://evil.example"}).status_code == 403
    assert TestClient(abroad, base_url="http://arena.example").get(path).status_code == 200
    ballot = f"/r/{token}/ballots/{arena.ballots(token)[0]['id']}"
    big = json.dumps({"answers": LEFT, "x": "x" * 70000})
    assert client(arena).post(ballot, content=big).status_code == 413
