import numpy as np
import pytest

from mv2_jax.infer import measured
from mv2_jax.toybox import measures


@pytest.fixture
def plain(monkeypatch):
    """Measures that are the mean level of a clip, in place of looking for things."""

    def measure(clips, pictures, words):
        level = np.float64(clips).mean(axis=(1, 2, 3, 4))
        values = dict.fromkeys(measures.NAMES, level)
        return {**values, "jerk": np.full(len(clips), np.nan)}

    def spread(pictures, words):
        level = np.float64(pictures).mean(axis=(1, 2, 3)).std()
        return {"x": level, "y": float("nan"), "radius": level}

    def truth(words, frames, size, seed=0):
        return np.full((len(words), frames, *size, 3), 7 + seed, np.uint8)

    for name, function in (("measure", measure), ("spread", spread), ("truth", truth)):
        monkeypatch.setattr(measures, name, function)


def test_batches_add_up_beside_as_many_true_renders(plain):
    tally, words = measured.Tally(), np.zeros((2, 4), int)
    for level in (10, 20):
        clips = np.full((2, 3, 4, 4, 3), level, np.uint8)
        tally.add(clips, clips[:, 0], words)
    assert tally.values["video"]["flicker"].tolist() == [10, 10, 20, 20]
    assert tally.values["truth"]["flicker"].tolist() == [7, 7, 9, 9]  # other worlds every time
    means = tally.means()
    assert means["flicker"]["video"].mean == 15 and means["jerk"]["video"] is None
    lines = measured.table(means, {"x": {"picture": 1.5, "truth": None}}).splitlines()
    assert len(lines) == 2 + len(measures.NAMES) and "15 (" in lines[4]
    assert lines[-1].split()[:4] == ["seeds,", "x", "1.5", "-"]


def test_seeds_fill_their_batches_and_each_counts_once(plain):
    asked = []

    def picture(prompts, seeds):
        asked.append((prompts[0], seeds))
        return np.stack([np.full((4, 4, 3), seed, np.uint8) for seed in seeds])

    found = measured.spread(picture, ["a", "b"], np.zeros((2, 4), int), (4, 4), batch=3)
    assert asked[:3] == [("a", [0, 1, 2]), ("a", [3, 4, 5]), ("a", [6, 7, 7])]
    assert found["x"]["picture"] == pytest.approx(np.arange(8).std())
    assert found["y"] == {"picture": None, "truth": None} and found["x"]["truth"] == 0
