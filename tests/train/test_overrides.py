import pytest
from ml_collections import ConfigDict

from mv2_jax.errors import InputError
from mv2_jax.train.overrides import apply, leaves
from mv2_jax.train.phase import packing, phase, recipe


@pytest.fixture
def chain():
    return recipe(
        first=phase("vae", model={"channels": (8, 16), "scale": None}, data={"flip": False}),
        second=phase("vae", steps=7),
    )


def test_values_take_the_type_of_what_stands_there(chain):
    apply(
        chain,
        [
            "optim.lr=1e-4",
            "steps=2e3",
            "optim.name=muon",
            "model.channels=(4,)",
            "model.scale=0.5",
            "data.flip=true",
            "begin={'vae': 'toybox/vae'}",
        ],
    )
    first, second = chain.phases.first, chain.phases.second
    assert first.optim.lr == second.optim.lr == 1e-4
    assert first.steps == second.steps == 2000 and type(first.steps) is int
    assert first.optim.name == "muon" and first.data.flip is True
    assert first.model.channels == (4,) and first.model.scale == 0.5
    assert first.begin.vae == "toybox/vae"


def test_a_phase_can_be_meant_alone(chain):
    apply(chain, ["second.steps=9", "first.optim.clip=0"])
    assert (chain.phases.first.steps, chain.phases.second.steps) == (1000, 9)
    assert (chain.phases.first.optim.clip, chain.phases.second.optim.clip) == (0.0, 1.0)


def test_what_is_packed_is_set_like_a_phase():
    chain = recipe(packing(prompt="a"), only=phase("vae"))
    apply(chain, ["pack.prompt=a red ball", "pack.sources=('toybox/vae',)"])
    assert chain.pack.prompt == "a red ball" and chain.pack.sources == ("toybox/vae",)
    with pytest.raises(InputError, match=r"did you mean 'prompt'"):
        apply(chain, ["pack.promt=x"])


@pytest.mark.parametrize(
    "setting, says",
    [
        ("optim.lrr=1", "did you mean 'optim.lr'"),
        ("optm.warmup=1", "did you mean 'optim.warmup'"),
        ("second.stps=1", "did you mean 'steps'"),
        ("optim=1", "there is no such setting"),
        ("optim.lr", "write it as NAME=VALUE"),
        ("optim.lr=fast", "expected a value of type float"),
        ("steps=1.5", "expected a value of type int"),
        ("data.flip=maybe", "expected a value of type bool"),
        ("model.channels=('a',)", "expected a value of type tuple"),
        ("begin=3", "expected a value of type mapping"),
    ],
)
def test_a_bad_setting_says_so_and_changes_nothing(chain, setting, says):
    before = chain.to_json()
    with pytest.raises(InputError, match=says.replace("(", r"\(")):
        apply(chain, ["steps=3", setting])
    assert chain.to_json() == before


def test_leaves_are_all_there(chain):
    found = leaves(chain.phases.first)
    assert found["model.channels"] == (8, 16) and isinstance(found["begin"], ConfigDict)
