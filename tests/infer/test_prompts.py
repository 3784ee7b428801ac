"""`mv2 generate --prompts`: lines in, files out, what is kept, and what fails."""

import argparse
import contextlib
import io
import json
import re
import sys
import time

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mv2_jax import cli
from mv2_jax.errors import InputError
from mv2_jax.infer import generate as generating
from mv2_jax.infer import media, prompts
from mv2_jax.infer.ready import Checked

BALL, CUBE = "a red ball bouncing over the meadow", "the red cube in the snow"


@pytest.fixture
def mv2(tiny_weights, fake_cascade, tmp_path, monkeypatch):
    """Runs `mv2 generate --prompts` in an empty folder, over lines of a file."""
    monkeypatch.chdir(tmp_path)

    def run(lines, *arguments, name="prompts.jsonl"):
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
        weights = ("--weights", str(tiny_weights))
        return cli.main(["generate", *weights, "--prompts", name, *map(str, arguments)])

    return run


def side(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def made(folder):
    return sorted(path.stem for path in folder.glob("*.mp4"))


def test_a_line_takes_the_fields_of_a_request(mv2, tmp_path, capsys):
    media.write_image(tmp_path / "own.png", np.full((40, 64, 3), 200, np.uint8))
    lines = [
        {"prompt": BALL, "seed": 3, "t2i_steps": 2, "i2v-guidance": 5, "size": "64x48"},
        "",
        CUBE,
        {"prompt": CUBE, "image": "own.png", "out": "from_own.mp4", "i2v_sampler": "euler"},
        {"prompt": BALL, "negative": "snow", "variations": 2, "seed": None},
    ]
    assert mv2(lines, "-o", "videos", "--between", 1, "--seed", 9) == 0
    out = tmp_path / "videos"
    assert made(out) == ["00001", "00003", "00005-1", "00005-2", "from_own"]
    first, last, own = (side(out, name) for name in ("00001", "00005-2", "from_own"))
    assert (first["prompt"], first["seed"], first["size"]) == (BALL, 3, [48, 64])
    assert first["settings"]["t2i"]["steps"] == 2 and first["settings"]["i2v"]["guidance"] == 5
    assert first["settings"]["vfi"]["between"] == own["settings"]["vfi"]["between"] == 1
    assert (last["prompt"], last["seed"], last["negative"]) == (BALL, 10, "snow")
    assert own["choices"]["i2v"] == {"sampler": "euler"} and own["from_image"]["sha256"]
    said = capsys.readouterr()
    assert said.out.splitlines()[0].startswith("videos/00001.mp4: 7 frames of 64x48")
    assert re.search(r"mv2: 5 videos made in \d+ s; [\d.e+]+ a minute after the first\n", said.err)


def test_each_equals_the_video_made_alone(mv2, tmp_path, tiny_weights):
    assert mv2([{"prompt": BALL, "seed": 4, "v2v_guidance": 2}, CUBE, BALL], "--batch", 2) == 0
    alone = ["generate", BALL, "--seed", "4", "--v2v-guidance", "2"]
    assert cli.main([*alone, "--weights", str(tiny_weights)]) == 0
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "out" / "00001.mp4").read_bytes()


def test_a_restart_keeps_what_is_finished_and_replaces_nothing(mv2, tmp_path, capsys):
    lines, out = [BALL, {"prompt": CUBE, "seed": "random"}, CUBE], tmp_path / "out"
    assert mv2(lines, name="prompts.txt") == 0
    (out / "00003.mp4").unlink()  # as if killed before the video was in its place
    (out / ".00003.0123abcd.part.mp4").touch()
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    assert mv2(lines, name="prompts.txt") == 0
    after = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"00003.mp4", "00003.png", "00003.json"} and len(after) == 9
    assert re.search(r"1 video made in \d+ s; 2 were there\n", capsys.readouterr().err)
    other = ["a ball", *lines[1:]]  # the old video stays
    assert mv2(other, name="prompts.txt") == 0
    assert made(out) == ["00001", "00001_2", "00002", "00003"]
    assert side(out, "00001")["prompt"] == BALL and side(out, "00001_2")["prompt"] == "a ball"
    assert mv2(other, name="prompts.txt") == 0 and len(made(out)) == 4
    assert mv2(other[:1], "--force", name="prompts.txt") == 0
    assert side(out, "00001")["prompt"] == "a ball"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"promt": BALL}, "unknown field 'promt'; did you mean 'prompt'?"),
        (
            {"prompt": BALL, "steps": 3},
            "unknown field 'steps'; there are t2i_steps, i2v_st",
        ),
        ({"prompt": BALL, "seed": -1}, "--seed takes a whole number"),
        ({"prompt": BALL, "seed": True}, '"seed" takes a text or a number, not true'),
        ({"prompt": [BALL]}, '"prompt" takes a text or a number'),
        ({"prompt": BALL, "t2i_steps": 0}, "--t2i-steps is 0; it goes from 1 to 1000"),
        ({"prompt": BALL, "image": "none.png"}, "none.png: no such file"),
        ({"prompt": BALL, "image": " "}, '"image" is empty'),
        ({"prompt": BALL, "i2v_sampler": "eulr"}, "did you mean 'euler'?"),
        ({"prompt": BALL, "out": "../x"}, '"out" is the name of a file in the folder'),
        ({"prompt": BALL, "variations": 0}, '"variations" takes a whole number from 1'),
        ({"prompt": BALL, "tell": "x=1"}, '"tell" takes names with values'),
        ({"prompt": BALL, "weights": "gone"}, "no weights at gone"),
        ({"seed": 1}, "no prompt"),
        ('{"prompt": "a ball"', "it is not JSON"),
        ('{"a":' * 100000, "it is not JSON"),
        ({"prompt": "a\0b"}, "a NUL is in it"),
        ('{"prompt": "a ball", "image": "\\ud800"}', "it is not text in UTF-8"),
        ({"prompt": BALL, "image": "x" * 5000}, "file name too long"),
    ],
)
def test_a_bad_line_is_told_and_the_rest_is_made(mv2, tmp_path, capsys, line, message):
    assert mv2([line, BALL]) == 1
    assert made(tmp_path / "out") == ["00002"]
    told = capsys.readouterr().err.splitlines()
    assert message in next(text for text in told if text.startswith("mv2: line 1 failed: "))
    assert "1 failed:" in told[-2] and told[-1].startswith("  line 1: ") and message in told[-1]


@pytest.mark.parametrize("part", [None, "0/2", "1/2"])
def test_a_prompt_that_comes_again_gets_the_next_seed(mv2, tmp_path, part):
    lines = [
        BALL,
        {"prompt": BALL, "seed": 7},
        CUBE,
        BALL,
        {"prompt": BALL, "variations": 2},
        BALL,
        {"promt": BALL},
    ]
    code = mv2(lines, "--seed", 3, *(("--part", part) if part else ()))
    wanted = {"00001": 3, "00002": 7, "00003": 3, "00004": 4, "00005-1": 5, "00005-2": 6}
    wanted["00006"] = 7
    if part:
        wanted = {k: v for k, v in wanted.items() if (int(k[:5]) - 1) % 2 == int(part[0])}
    assert {name: side(tmp_path / "out", name)["seed"] for name in made(tmp_path / "out")} == wanted
    assert code == (part != "1/2")


def test_a_line_takes_every_option_of_a_request(mv2, tmp_path):
    """Those that are not fields say what is done with the videos, or are of the whole command."""
    apart = {"help", "force", "no_metadata", "stages", "batch", "prompts", "part", "mesh"}
    parser = argparse.ArgumentParser().add_subparsers()
    known = {a.dest.rstrip("_") for a in cli._generate_parser(parser, set())._actions}
    assert known - apart - {"resident"} == set(prompts.FIELDS)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["1x1", "random", "nosuch://x", "rife+", "2=x", "euler", "/", "-1", "x:y"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner,
                                                                max_size=2),
    max_leaves=3,
)  # fmt: skip
LINES = st.one_of(
    st.dictionaries(st.sampled_from(prompts.FIELDS), VALUES, max_size=4).map(json.dumps),
    st.text(max_size=30),
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(text=LINES, broken=st.binary(max_size=3))
def test_any_line_asks_for_something_or_is_refused(tiny_weights, tmp_path, text, broken):
    parsed = cli._parse(["generate", "--prompts", "x", "--weights", str(tiny_weights)])
    ask, check = prompts.Asker(parsed), Checked()
    for content in (
        text.encode("utf-8", "surrogatepass"),
        text.encode("utf-8", "replace") + broken,
    ):
        with contextlib.suppress(InputError):
            check.numbers(ask(prompts.Line(1, content or b"{")).request)


def test_what_fails_while_it_runs_is_passed_over(mv2, tmp_path, capsys, fake_cascade, monkeypatch):
    v2v = fake_cascade.v2v

    def short(self, prompts, *args, **kwargs):
        if CUBE in prompts:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return v2v(self, prompts, *args, **kwargs)

    monkeypatch.setattr(fake_cascade, "v2v", short)
    assert mv2([BALL, CUBE, BALL]) == 1
    assert made(tmp_path / "out") == ["00001", "00003"]
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == "  line 2: RuntimeError: RESOURCE_EXHAUSTED: out of memory"


def test_it_stops_where_nobody_reads_the_results(mv2, tmp_path, monkeypatch):
    def gone(*_):
        raise BrokenPipeError

    monkeypatch.setattr(generating, "summary", gone)
    monkeypatch.setattr(cli, "_unread", lambda: 141)
    assert mv2([BALL, CUBE]) == 141 and made(tmp_path / "out") == ["00001"]


def test_lines_are_shared_by_processes(mv2, tmp_path, monkeypatch):
    lines = [BALL, CUBE, BALL, CUBE, BALL]
    assert mv2(lines, "--part", "1/3") == 0 and made(tmp_path / "out") == ["00002", "00005"]
    for name, value in (("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "3")):
        monkeypatch.setenv(name, value)
    assert mv2(lines) == 0 and made(tmp_path / "out") == ["00001", "00002", "00004", "00005"]
    assert mv2(lines, "--part", "2/3") == 0 and len(made(tmp_path / "out")) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--part", "3/3"), "--part takes I/N"),
        (("--part", "x"), "--part takes I/N"),
        ((BALL,), "prompts come from --prompts"),
        (("-o", "prompts.jsonl"), "cannot write prompts.jsonl"),
        (("-o", "gs://bucket/videos"), "videos are written to a disk"),
    ],
)
def test_what_stops_all_is_one_line(mv2, capsys, arguments, message):
    assert mv2([BALL], *arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert cli.main(["generate", "--prompts", "none.txt"]) == 2
    assert "cannot read none.txt: no such file" in capsys.readouterr().err
    assert cli.main(["generate", BALL, "--part", "0/2"]) == 2


def test_standard_input_is_served_as_lines_come(mv2, tmp_path, tiny_weights, monkeypatch, capsys):
    out = tmp_path / "out"

    def typed():
        yield f"{BALL}\n".encode()
        until = time.monotonic() + 60
        while not (out / "00001.mp4").exists() and time.monotonic() < until:
            time.sleep(0.02)
        yield b'{"prompt": "a red ball", "seed": 3}\n' if made(out) == ["00001"] else b"{\n"

    class Stdin(io.TextIOWrapper):
        buffer = typed()

    monkeypatch.setattr(sys, "stdin", Stdin(io.BytesIO()))
    weights = ("--weights", str(tiny_weights))
    assert cli.main(["generate", *weights, "--prompts", "-", "--batch", "4"]) == 0
    assert made(out) == ["00001", "00002"] and side(out, "00002")["seed"] == 3
    assert side(out, "00001")["made_with"]["batch"] == 4


class Seen:
    """For which lines programs were compiled, and how many loads of weights there were."""

    def __init__(self, monkeypatch, programs):
        self.compiled, self.loads, load = [], 0, generating.load
        call = generating.Bars.__call__

        def told(bars, stage, done, total):
            if stage.startswith("compiling") and not done:
                self.compiled.append(bars.prefix)
            call(bars, stage, done, total)

        def counted(*args):
            self.loads += 1
            return load(*args)

        monkeypatch.setattr(generating.Bars, "__call__", told)
        monkeypatch.setattr(generating, "load", counted)
        monkeypatch.setattr(generating.cache, "enable", lambda: programs)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A cascade of networks of nothing, all of whose stages run."""
    folder = tmp_path_factory.mktemp("real") / "weights"
    return tiny.write(folder, tiny.make()).folder


def test_a_batched_video_is_made_again_and_programs_are_shared(real, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    seen = Seen(monkeypatch, tmp_path / "programs")
    lines = [
        {"prompt": "a red ball", "seed": 5},
        {"prompt": "a blue cube", "seed": 6},
        {"prompt": "a (green:1.2) ring", "i2v_guidance": 3.0},
        {"prompt": "a red ball", "image_scale": 0.5},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    weights = ["--weights", str(real)]
    asked = ["generate", *weights, "--prompts", "p.jsonl"]
    assert cli.main([*asked, "--batch", "2"]) == 0
    # Numbers, prompts and seeds compile nothing; a marked prompt does.
    assert seen.loads == 1 and set(seen.compiled) == {"line 2 ", "line 3 "}
    out = tmp_path / "out"
    places = [side(out, f"0000{k}")["made_with"] for k in (1, 2, 3, 4)]
    assert [(at["batch"], at["row"]) for at in places] == [(2, 0), (2, 1), (2, 0), (2, 0)]
    capsys.readouterr()
    assert cli.main(["generate", "--from", "out/00002.json"]) == 0
    assert "the frames are the same as before" in capsys.readouterr().out
