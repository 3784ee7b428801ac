"""One home of defaults: Python, the command, its help and what a folder stores say the same."""

import dataclasses

import pytest

from mv2_jax import bundle, numbers
from mv2_jax.errors import InputError
from mv2_jax.infer import settings


def test_the_command_and_python_have_the_same_numbers_of_the_shipped_weights():
    weights = bundle.read()
    command, count = settings.resolve({}, {}, weights), 0
    for stage, ours in weights.numbers.items():
        python = dataclasses.asdict(ours)
        for name, value in python.items():
            assert command[stage][name] == value, (stage, name)
            count += 1
    assert count == 64 and command["t2i"]["guidance"] == 4.0


def test_every_flag_tells_its_default_and_its_range():
    shipped = settings.shipped()
    told = {setting.flag: setting.help(shipped) for setting in settings.SETTINGS}
    assert told["--t2i-guidance"].startswith("T2I: guidance scale of the text")
    assert told["--t2i-guidance"].endswith("(4; 0 to 100)")
    assert told["--image-guidance"].endswith("(I2V 1.5, V2V 1; 0 to 100)")
    assert told["--v2v-steps"].endswith("(10; 1 to 1000)")
    named = {name for stage in numbers.STAGES for name in numbers.about(stage)}
    assert named == {setting.name for setting in settings.SETTINGS}


def test_what_a_folder_stores_is_checked():
    assert numbers.read({"i2v": {"noise_prior": 1}}, "here")["i2v"].noise_prior == 1.0
    for stored, message in (
        ({"i3v": {}}, "here: unknown stage 'i3v'"),
        ({"t2i": {"noise_prior": 1}}, "here: t2i has no setting 'noise_prior'"),
        ({"v2v": {"strength": 2}}, "here: v2v strength is 2; it goes from 0 to 1"),
        ({"vfi": {"between": 1.5}}, "here: vfi between takes a whole number, not 1.5"),
        ({"t2i": {"guidance": "much"}}, "here: t2i guidance takes a number, not 'much'"),
        ({"t2i": {"guidance": float("nan")}}, "here: t2i guidance takes a number"),
    ):
        with pytest.raises(InputError, match=message):
            numbers.read(stored, "here")
