"""Numbers that change nothing are known, and they alone: by changing each and looking."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mv2_jax import numbers as sets
from mv2_jax.diffusion import keys
from mv2_jax.diffusion.process import Flow
from mv2_jax.errors import InputError

PROMPT = ["a red ball"]
OTHERS = {
    "guidance": 2.0,
    "image_guidance": 2.5,
    "guidance_rescale": 0.5,
    "guidance_low": 1e6,
    "guidance_high": 1e-6,
    "image_scale": 0.5,
    "image_start": 0.5,
    "image_end": 0.4,
    "image_frames": "0:0.5",
    "control_scale": 0.5,
    "control_start": 0.5,
    "control_end": 0.4,
    "control_frames": "0:0.5",
    "control_sees": "first",
    "control_type": "canny",
    "noise_prior": 0.5,
    "free_init": 1,
    "strength": 1.0,
    "motion_scale": 0.5,
    "motion_frames": "0:0.5",
    "original_size": "64x64",
    "target_size": "64x64",
    "crop": "8x8",
    "empty_text": "encoded",
    "cache_interval": 2,
    "cache_branch": 1,
}
SDXL = {"original_size", "target_size", "crop", "empty_text"}  # idle here, whatever else is
# Every step is whole, and the ControlNet is no Union.
IDLE = SDXL | {"cache_branch", "control_type"}


@pytest.fixture(scope="module")
def four():
    made = tiny.make()
    own = {"guidance": 3.0, "image_guidance": 1.5}
    kept = {name: sets.changed(name, made.numbers[name], own) for name in ("i2v", "v2v")}
    return dataclasses.replace(made, numbers={**made.numbers, **kept})


def latent(four, stage, **changes):
    """What a stage makes of these numbers; nothing is refused."""
    numbers = dataclasses.replace(four.numbers[stage], **changes)
    four = dataclasses.replace(four, numbers={**four.numbers, stage: numbers})
    rng = np.random.default_rng(0)
    given = [rng.uniform(-1, 1, (1, 48, 48, 3)), rng.uniform(-1, 1, (1, 3, 32, 32, 3))]
    begun = four.chain(stage, PROMPT, keys.seeds([1]), {}, *given[: 1 + (stage == "v2v")])
    return np.asarray(begun.end().x)


@pytest.mark.parametrize(
    ("stage", "changes", "count"),
    [
        pytest.param("i2v", {"rule": "apart"}, 0, marks=pytest.mark.slow),
        pytest.param("i2v", {"rule": "public"}, 1, marks=pytest.mark.slow),
        pytest.param(
            "i2v", {"rule": "none", "conditions": ("text", "image")}, 10, marks=pytest.mark.slow
        ),
        pytest.param(
            "v2v", {"rule": "text", "conditions": ("text", "image")}, 7, marks=pytest.mark.long
        ),
    ],
)
def test_those_that_are_idle_change_nothing_and_the_others_do(four, stage, changes, count):
    four = four.with_stage(stage, **changes)
    own = four.numbers[stage]
    plain, deaf = latent(four, stage), four.idle(stage)
    assert len(deaf.keys() - {"negative"} - IDLE) == count and deaf.keys() >= IDLE
    for name in vars(own).keys() - {"steps"}:
        same = np.array_equal(plain, latent(four, stage, **{name: OTHERS[name]}))
        assert same == (name in deaf), name


def test_some_are_idle_beside_others(four):
    alone = four.idle("i2v", guidance=1, image_guidance=1)
    guided = {"guidance_rescale", "guidance_low", "guidance_high", "negative"}
    assert alone.keys() == guided | IDLE
    assert alone["negative"] == "nothing is guided at a guidance of 1"
    still = four.idle("v2v", strength=0.4)  # of 2 steps
    assert still.keys() == vars(four.numbers["v2v"]).keys() - {"steps", "strength"} | {"negative"}
    assert four.idle("v2v", strength=0.5).keys() == IDLE | {"cache_interval"} and not four.idle(
        "vfi"
    )
    text = four.with_stage("i2v", conditions=("image", "control"))
    assert text.idle("i2v")["negative"] == "guidance steers away from no text here"


def test_a_process_of_noise_alone_has_no_prior(four):
    flow = four.with_stage("i2v", schedule=Flow())
    assert flow.idle("i2v")["noise_prior"].startswith("the process begins in noise alone")
    assert np.array_equal(latent(flow, "i2v"), latent(flow, "i2v", noise_prior=1.0))


def test_python_refuses_a_change_without_effect(four):
    public = four.with_stage("i2v", rule="public")
    call = {"keys": keys.seeds([0]), "image": jnp.zeros((1, 32, 32, 3))}
    told = "i2v image_guidance has no effect: the guidance rule 'public' has no scale for the pict"
    with pytest.raises(InputError, match=told):
        public.i2v(PROMPT, **call, image_guidance=3.0)
    with pytest.raises(InputError, match=told):
        public.with_numbers("i2v", image_guidance=3.0)
    # What the weights hold is no change, and neither is what another rule would hear.
    assert public.with_numbers("i2v", image_guidance=1.5, guidance=2).numbers["i2v"].guidance == 2
    assert four.with_numbers("i2v", image_guidance=3.0).numbers["i2v"].image_guidance == 3
    with pytest.raises(InputError, match="t2i has no input 'negatives'; did you mean 'negative'"):
        four.t2i(PROMPT, keys=keys.seeds([0]), more={"negatives": [1]})
