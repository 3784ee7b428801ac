"""The shipped cascade still makes what it made: see guard.py."""

import dataclasses
import json
from pathlib import Path

import guard
import numpy as np
import pytest

from mv2_jax import bundle, cli
from mv2_jax.infer import generate, request, settings

# Written by version 0.1.0 as it was first, with every 507th of the values of its frames.
SIDECAR = Path(__file__).parent / "data" / "sidecar-0.1.0.json"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_shipped_cascade_makes_what_it_made(seed):
    with np.load(guard.STORED) as kept:
        old = {name: kept[name] for name in kept if name.startswith(f"{seed} ")}
    found = guard.apart(old, guard.few(guard.make(guard.load(), seed, True)))
    print(found)
    assert len(found) == 6
    assert max(value for name, value in found.items() if "latents" in name) <= guard.LATENTS
    assert max(value for name, value in found.items() if "pixels" in name) <= guard.PIXELS


def test_a_sidecar_of_the_first_version_asks_for_what_it_asked():
    """Its weights are those that ship, and nothing that came later changes its numbers."""
    old, weights = request.read_sidecar(SIDECAR), bundle.read()
    assert old["choices"] == {} and old["tell"] == {}
    assert old["weights"]["sha256"] == weights.digest
    for stage, now in settings.resolve({}, old["settings"], weights).items():
        came_later = now.keys() - old["settings"][stage].keys()
        assert {name: now[name] for name in now if name not in came_later} == old["settings"][stage]
        usual = dataclasses.asdict(weights.numbers[stage])
        assert all(now[name] == usual[name] for name in came_later)
    # Nor is there a rule in those weights: theirs is the one that there was.
    stored = json.loads((weights.folder / bundle.INDEX).read_text())
    assert not any("rule" in stage for stage in stored["stages"].values())
    assert bundle.config.USUAL_RULE == "apart"


@pytest.mark.slow
def test_a_sidecar_of_the_first_version_makes_what_it_made(tmp_path, monkeypatch, capsys):
    made, make = [], generate.make
    monkeypatch.setattr(generate, "make", lambda *a, **k: made.append(make(*a, **k)) or made[0])
    monkeypatch.chdir(tmp_path)
    assert cli.main(["generate", "--from", str(SIDECAR)]) == 0
    assert "warning" not in capsys.readouterr().err
    frames = made[0].frames[0]
    with np.load(SIDECAR.with_suffix(".npz")) as kept:
        old = {"frames": kept["frames"]}
    spread = np.linspace(0, frames.size - 1, old["frames"].size).astype(int)
    found = guard.apart(old, {"frames": frames.ravel()[spread]})
    print(found)
    assert found["frames"] <= guard.PIXELS
