"""Broken files and arguments get one line and code 2, whatever is wrong with them."""

import contextlib
import copy
import io
import json
import shutil

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mv2_jax import bundle, cli

PROMPT = "a red ball bouncing over the meadow"
QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**30, -0.5, 1e308, float("nan"), float("inf"), "", "x", "a/b", "../up"]),
    st.text(max_size=4),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)


def places(data, here=()):
    """The path of every value inside JSON's lists and objects."""
    inside = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in inside:
        yield (*here, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*here, key))


def changed(data, place, how, value):
    """A copy of `data` with one value replaced or removed, or one more beside it."""
    data = copy.deepcopy(data)
    inside = data
    for key in place[:-1]:
        inside = inside[key]
    if how == "replace":
        inside[place[-1]] = value
    elif how == "remove":
        del inside[place[-1]]
    elif isinstance(inside, dict):
        inside[f"{place[-1]}s"] = value
    return data


def told(*arguments):
    """(exit code, what was said on standard error) of a command; nothing else may come out."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as error:  # of --help
            code = error.code or 0
    return code, [line for line in said.getvalue().splitlines() if line.startswith("mv2: error")]


def refused_or_done(*arguments):
    code, lines = told(*arguments)
    assert not any("object has no attribute" in line for line in lines), lines  # Python's words
    assert code in (0, 2), (code, lines)
    assert len(lines) == (code == 2), lines
    return code


@pytest.fixture(scope="module")
def cascade(tiny_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "cascade"
    shutil.copytree(tiny_weights, folder)
    return folder, json.loads((folder / bundle.INDEX).read_text())


@QUICK
@given(data=st.data())
def test_a_broken_cascade_folder(cascade, here, fake_cascade, data):
    folder, index = cascade
    every = [place for place in places(index) if place[:2] != ("tokenizer", "words")]
    place = data.draw(st.sampled_from(every))
    how = data.draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
    new = changed(index, place, how, data.draw(VALUES))
    (folder / bundle.INDEX).write_text(json.dumps(new))
    refused_or_done("generate", PROMPT, "--weights", folder, "--force")


DEEP = '{"schema": 1, "a": ' + "[" * 200_000 + "]" * 200_000 + "}"


@pytest.mark.parametrize(
    "place, value",
    [
        (("tokenizer",), None),
        (("tokenizer",), 3),
        (("tokenizer",), [1]),
        (("tokenizer", "class"), "WordTokeniser"),
        (("stages", "t2i", "sampler"), None),
        (("stages", "v2v", "size"), [0, 8]),
        (("components", "vae", "config", "latent_patch"), 0),
        (("components", "vae", "file"), "a\0b"),
        (("components", "vae", "sha256"), None),
        (("name",), ["x"]),
        (("stages",), [1]),
        (("components",), 0.5),
        (("defaults",), "x"),
    ],
)
def test_broken_folders_that_were_tracebacks(cascade, here, fake_cascade, place, value):
    folder, index = cascade
    (folder / bundle.INDEX).write_text(json.dumps(changed(index, place, "replace", value)))
    assert refused_or_done("generate", PROMPT, "--weights", folder, "--force") == 2


@pytest.mark.parametrize(
    "text", [DEEP, '{"schema": 1, "prompt": "a\\u0000b"}', "\ud800"[:0], "[", "1"]
)
def test_files_that_are_no_good_json(cascade, here, fake_cascade, text):
    folder, index = cascade
    (folder / bundle.INDEX).write_text(text)
    (here / "side.json").write_text(text)
    try:
        assert refused_or_done("info", "--weights", folder) == 2
        assert refused_or_done("generate", "--from", "side.json") == 2
    finally:
        (folder / bundle.INDEX).write_text(json.dumps(index))


@pytest.fixture
def sidecar(cascade, here, fake_cascade):
    folder, index = cascade
    (folder / bundle.INDEX).write_text(json.dumps(index))
    code, lines = told("generate", PROMPT, "--weights", folder, "-o", "v.mp4", "--force")
    assert code == 0, lines
    return json.loads((here / "v.json").read_text())


@QUICK
@given(data=st.data())
def test_a_broken_sidecar(sidecar, here, data):
    place = data.draw(st.sampled_from(list(places(sidecar))))
    how = data.draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
    new = changed(sidecar, place, how, data.draw(VALUES))
    (here / "side.json").write_text(json.dumps(new))
    refused_or_done("generate", "--from", "side.json", "--force")


WORDS = st.one_of(
    st.sampled_from([
        "-o", "--out", "--seed", "--image", "--video", "--from", "--size", "--stages", "--batch",
        "--weights", "--times", "--fps", "--slow", "--start", "--end", "--vfi", "--views", "--cuts",
        "--pause", "--dedupe", "--codec", "--crf", "--preset", "--pixels", "--sound", "--strict",
        "--prompts", "--set", "--phase", "--methods", "--gaps", "--t2i-steps", "--v2v-strength",
        "--unet", "--motion", "--lora", "--text-encoder", "0", "-1", "1e9", "nan", "1/0", "off",
        "x", "a=b", "nowhere", "nowhere.mp4", "bad.json", "out.mp4", "toybox", "vfi", "1x1",
    ]),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=5),
)  # fmt: skip
# Those that would begin a long piece of work over good arguments are given none that are good.
COMMANDS = ("generate", "interpolate", "bench", "explain", "study", "verify", "export", "info",
            "plan", "eval", "rehearse", "convert", "train", "data", "precompute", "")  # fmt: skip


@QUICK
@given(command=st.sampled_from(COMMANDS), words=st.lists(WORDS, max_size=6))
@example(command="interpolate", words=["nowhere.mp4", "--fps", "1/0"])
@example(command="train", words=["x", "--set", "a"])
def test_any_words_after_any_command(here, monkeypatch, command, words):
    (here / "bad.json").write_text("{}")
    monkeypatch.setattr("mv2_jax.infer.generate.load", lambda *_: pytest.skip("work begins"))
    if command in ("eval", "study", "explain", "rehearse", "plan", "generate", "bench", "train"):
        words = [*words, "--no-such-flag"]  # the words are parsed, and nothing is begun
    code, lines = told(*([command] if command else []), *words)
    assert code in (0, 1, 2) and len(lines) == (code != 0), (code, lines)
