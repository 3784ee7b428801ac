import numpy as np
import pytest
import tiny

from mv2_jax.diffusion import keys


@pytest.fixture(scope="module")
def four():
    return tiny.make()


def test_another_stage_or_component_leaves_the_rest_as_it_is(four):
    other = four.with_stage("i2v", steps=7, sampler="euler")
    assert (other.keyframes.stage.steps, other.keyframes.stage.sampler) == (7, "euler")
    assert four.keyframes.stage.steps == 2 and other.refined is four.refined
    assert other.params is four.params and other.programs is four.programs
    tree = {"w": np.zeros(3)}
    swapped = four.with_params(motion_i2v=tree)
    assert swapped.parameters("i2v")["motion"] is tree
    assert swapped.parameters("v2v")["motion"] is four.params["motion_v2v"]
    assert four.params["motion_i2v"] is not tree


def test_unknown_names_are_answered_with_the_nearest(four):
    with pytest.raises(ValueError, match="no stage 't2ii'; did you mean 't2i'"):
        four.with_stage("t2ii", steps=3)
    with pytest.raises(ValueError, match="no 'sampeler'; did you mean 'sampler'"):
        four.with_stage("t2i", sampeler="ddim")
    with pytest.raises(ValueError, match="no component 'contrl'; did you mean 'control'"):
        four.with_params(contrl={})


def test_a_stage_is_handed_its_own_trees(four):
    names = {"text_encoder", "spatial", "image_encoder", "image_attn", "control", "motion"}
    assert set(four.parameters("t2i")) == {"text_encoder", "spatial"}
    assert set(four.parameters("i2v")) == set(four.parameters("v2v")) == names
    ids, nothing = four.ids(["a red ball", "a star"])
    assert ids.shape == nothing.shape == (2, 20) and np.array_equal(nothing[0], nothing[1])


@pytest.mark.parametrize("stage", ["t2i", "i2v", "v2v"])
def test_guidance_can_be_bounded_and_rescaled_in_every_stage(four, stage):
    image = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    given = {"t2i": (), "i2v": (image,), "v2v": (image, image[:, None].repeat(3, 1))}[stage]

    def run(guidance, **more):
        made = getattr(four, stage)(
            ["a red ball"], *given, keys=keys.seeds([3]), **more, guidance=guidance
        )
        return np.asarray(made)

    guided, alone = run(6.0), run(1.0)
    assert np.abs(guided - alone).max() > 1e-3
    assert np.array_equal(run(6.0, guidance_low=1e-6, guidance_high=1e6), guided)
    # Where the interval holds no step, nothing is guided.
    for bounds in ({"guidance_low": 1e6}, {"guidance_high": 1e-6}):
        np.testing.assert_allclose(run(6.0, **bounds), alone, atol=5e-6)
    rescaled = run(6.0, guidance_rescale=1.0)
    assert min(np.abs(rescaled - other).max() for other in (guided, alone)) > 1e-4


def test_batches_of_different_lengths_are_refused(four):
    image = np.zeros((1, 32, 32, 3), np.float32)
    two = keys.seeds([1, 2])
    with pytest.raises(ValueError, match="not 1 prompts, 2 keys"):
        four.t2i(["a red ball"], keys=two)
    with pytest.raises(ValueError, match="not 2 prompts, 1 image, 2 keys"):
        four.i2v(["a red ball", "a star"], image, keys=two)
    with pytest.raises(ValueError, match="not 1 prompts, 1 image, 2 keyframes, 1 keys"):
        four.v2v(["a red ball"], image, np.zeros((2, 3, 32, 32, 3)), keys=keys.seeds([1]))
    with pytest.raises(ValueError, match="prompts is one text"):
        four.t2i("a red ball", keys=two)
