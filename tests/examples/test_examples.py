"""The scripts of examples/, each run on networks of nothing."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tiny

FOLDER = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.fixture(scope="module")
def four():
    return tiny.make()


def main(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_they_are_short():
    assert max(len(path.read_text().splitlines()) for path in SCRIPTS) <= 80


def test_own_sampler(four, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    sheet = main("own_sampler")(four, steps=4)
    ddim, own = sheet[:, :48].astype(int), sheet[:, 48:].astype(int)
    # Another way through the same field from the same noise: not the same, and not far off.
    assert 0 < np.abs(ddim - own).mean() < 0.5 * ddim.std()


@pytest.mark.slow
def test_own_condition_shows_what_it_says(monkeypatch):
    """Pictures as bright as was asked for, learnt in half a minute."""
    monkeypatch.syspath_prepend(FOLDER)
    import own_condition

    from mv2_jax import bundle, cascade

    pictures = np.asarray(own_condition.main(cascade.load(bundle.read())))
    assert pictures.shape == (3, 192, 192, 3)
    made = pictures.mean(axis=(1, 2, 3))
    print(made)
    assert np.abs(made - own_condition.LEVELS).max() < 0.15


def test_own_guidance(four, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    sheet = main("own_guidance")(four).astype(int)
    text, usual, projected = np.split(sheet, 3, axis=1)
    # With all of the part along the prompted output the rule is guidance over the text.
    assert np.abs(text - usual).max() <= 1
    assert np.abs(text - projected).mean() > 0.3  # 0.7


def test_guidance_vmap(four):
    from mv2_jax.diffusion import keys
    from mv2_jax.infer import media

    sheet = main("guidance_vmap")(four, scales=(1.0, 6.0))
    prompt = ["a golden star rising at sunset"]
    for place, scale in ((sheet[:, :48], 1.0), (sheet[:, 48:], 6.0)):
        alone = media.to_uint8(four.t2i(prompt, keys=keys.seeds([7]), guidance=scale)[0])
        assert np.abs(place.astype(int) - alone).max() <= 1
    assert not np.array_equal(sheet[:, :48], sheet[:, 48:])


@pytest.mark.slow
def test_noise_gradient(four):
    strip, scores = main("noise_gradient")(four, steps=2, climbs=3, rate=0.02)
    assert strip.shape == (32, 96, 3) and scores == sorted(scores) and scores[-1] > scores[0]


@pytest.mark.slow
def test_swap_network(four, capsys):
    sheet = main("swap_network")(four)
    sizes = [int(line.split()[3].replace(",", "")) for line in capsys.readouterr().out.splitlines()]
    assert sheet.shape == (64, 96, 3) and sizes[1] > 2 * sizes[0]
    # Fresh motion modules are none: no more than the others' motion is gone.
    before, after = sheet[:32].astype(int), sheet[32:].astype(int)
    assert 1 < np.abs(before - after).mean() < 0.5 * before.std()  # 27, of 95
