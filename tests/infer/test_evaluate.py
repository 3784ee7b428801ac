"""`mv2 eval toybox` with all that computes left out: what it asks for, adds up and writes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from mv2_jax import cli
from mv2_jax.infer import evaluate, generate, media
from mv2_jax.toybox import measures, sight

COUNT, SIZE = 5, (16, 16)


class Cascade:
    picture = SimpleNamespace(stage=SimpleNamespace(size=SIZE))

    def __init__(self):
        self.pictures = []

    def t2i(self, prompts, *, keys, negative, **numbers):
        self.pictures += prompts
        return np.zeros((len(prompts), *SIZE, 3))


@pytest.fixture
def cascade(monkeypatch):
    four = Cascade()

    def make(cascade, prompts, numbers, seed, progress):
        clip = np.stack([np.full((7, *SIZE, 3), level, np.uint8) for level in seed])
        return generate.Made(clip[:, 0], clip, clip, clip)

    def judge(videos, words):
        right = {kind: np.ones(len(words), bool) for kind in (*sight.KINDS, "all")}
        if videos.shape[1] == 1:
            right.pop("motion")
        else:  # true renders are of ones, videos of their seed
            right["motion"] = videos.reshape(len(videos), -1).mean(axis=1) == 1
        overlap = videos.reshape(len(videos), -1).mean(axis=1) / 10
        return sight.Sight(right, {"overlap": overlap, "path": np.full(len(words), np.nan)}, {})

    def measure(clips, pictures, words):
        return dict.fromkeys(measures.NAMES, clips.mean(axis=(1, 2, 3, 4)))

    def truth(words, frames, size, seed):
        return np.ones((len(words), frames, *size, 3), np.uint8)

    monkeypatch.setattr(generate, "load", lambda *_: (four, {}))
    monkeypatch.setattr(generate, "make", make)
    monkeypatch.setattr(sight, "judge", judge)
    monkeypatch.setattr(measures, "measure", measure)
    monkeypatch.setattr(measures, "truth", truth)
    monkeypatch.setattr(
        measures, "spread", lambda x, words: dict.fromkeys(("x", "y", "radius"), len(x))
    )
    return four


def test_report_and_sheet(cascade, tiny_weights, tmp_path, capsys):
    arguments = ["--prompts", str(COUNT), "--batch", "2", "--weights", str(tiny_weights)]
    assert cli.main(["eval", "toybox", *arguments, "-o", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "eval.json").read_text())
    assert report["rates"]["video"]["both"]["thing"]["count"] == COUNT
    assert report["rates"]["video"]["both"]["motion"]["right"] == 1
    assert report["rates"]["true video"]["both"]["motion"]["right"] == COUNT
    assert "motion" not in report["rates"]["image"]["both"]
    assert report["judge"]["video"] == {"overlap": [0, 0.1, 0.2, 0.3, 0.4], "path": [None] * COUNT}
    assert len(report["prompts"]) == COUNT
    flicker = report["measures"]["flicker"]
    assert flicker["video"]["mean"] == 2 and flicker["truth"]["mean"] == 1  # seeds 0 to 4
    assert report["seeds"]["x"] == {"picture": 8.0, "truth": 8.0}
    assert len(cascade.pictures) == 8 and len(set(cascade.pictures)) == 1
    # A row a video: T2I's picture and six frames, halved.
    assert media.read_image(tmp_path / "eval.png", None).shape == (COUNT * 8, 7 * 8, 3)
    out = capsys.readouterr().out
    assert (
        "video, both" in out
        and "true video, both" in out
        and "flicker" in out
        and "true renders" in out
    )


def test_half_of_the_prompts_are_of_either_set():
    words, names, prompts = evaluate.withheld(5, 0)
    assert words.shape == (5, 4) and names == ["triples"] * 3 + ["quads"] * 2 and len(prompts) == 5


def test_what_cannot_be_is_said_before_a_video_is_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    for flags, says in (
        (["--seed", "-1"], "--seed is -1; it goes from 0"),
        (["--seed", str(2**32 - 1)], "it goes from 0 to"),
        (["-o", str(tmp_path / "file")], "cannot write"),
        (["-o", str(tmp_path / "file" / "x")], "cannot write"),
    ):
        assert cli.main(["eval", "toybox", *flags]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
