"""benchmarks/vfi_gains.py: candidates for a frame, and what their cycles weigh."""

import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gains(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import vfi_gains

    yield vfi_gains
    sys.modules.pop("vfi_gains")


def blend(first, second, time):
    return first * (1 - time) + second * time


def waving(first, second, time):
    """The blend, wrong between the given frames, and only in the left half."""
    wave = 0.3 * np.sin(np.pi * time) * (np.arange(first.shape[1]) < 30)[:, None]
    return blend(first, second, time) + wave.astype(np.float32)


def test_cycles_find_the_network_that_contradicts_itself(gains):
    start, pace = np.random.default_rng(0).uniform(-0.3, 0.1, size=(2, 21, 90, 3))
    given = [np.float32(start + k * pace) for k in range(4)]
    found = gains.candidates({"right": blend, "wrong": waving}, given, 1 / 3)
    truth = start + (1 + 1 / 3) * pace
    for (name, step), one in found.items():
        for errors in (one.own, one.given):
            assert errors.shape == (21, 90)
            left = errors[:, ::step][:, :20]  # as the network saw it
            assert errors.max() < 1e-3 if name == "right" else left.min() > 1
    made = gains.averages(found, 3)
    off = {label: np.abs(frame - truth)[:, :10].mean() for label, frame in made.items()}
    assert off["right (1)"] < 1e-6 < off["all networks (2)"]
    # Costs: four frames for one, or one more a gap of two new ones.
    assert off["all networks, own cycle (8)"] < 0.5 * off["all networks (2)"]
    assert off["all networks, given cycle (3)"] < 0.5 * off["all networks (2)"]
    right = np.abs(made["all networks, own cycle (8)"] - truth)[:, 60:]
    assert right.max() < 1e-5
