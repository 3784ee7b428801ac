"""Prompts that change over steps and frames, as the networks read them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from quick import quick

from mv2_jax.diffusion import guidance, keys
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context
from mv2_jax.stages import chain, stage

FOUR = tiny.make()
CLIP = FOUR.keyframes
PROMPTS = ["0: a [red:blue:0.5] ball, 2: a yellow star", "a (green:1.3) cube"]
PICTURES = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)


def told(cfg, prompts, times, negative="0: ring, 1: cube"):
    """What the conditioned row is told, and the negative one's text."""
    ids, away = FOUR.ids(prompts, negative, cfg.stage.frames, times)
    raw = {"ids": ids, "negative": away, "image": PICTURES[: len(prompts)]}
    return quick(stage.condition, "cfg", "rule")(
        FOUR.parameters("i2v"), raw, cfg=cfg, rule=guidance.TEXT
    )


def states(text):
    """The states of one text by itself; parts in brackets count."""
    ids, _ = FOUR.ids([text, "a (blue:1.1) cube"])
    cfg, params = CLIP, FOUR.parameters("i2v")
    return np.asarray(cfg.condition("text").prompt(params, cfg, ids).text[0])


def test_each_frame_reads_its_mixture_at_each_step():
    times = chain.program(CLIP.stage, 4)[1].t
    found = jax.tree.map(lambda leaf: leaf[1], told(CLIP, PROMPTS, times)["text"])
    away = jax.tree.map(lambda leaf: leaf[0], told(CLIP, PROMPTS, times)["text"])
    first, later, last = map(states, ("a red ball", "a blue ball", "a yellow star"))
    for step, t in enumerate(times):
        text = found.at(jnp.full(2, t)).text
        assert text.shape == (2, 3, 20, 8)
        now = first if step <= 2 else later
        for frame, share in enumerate((0, 0.5, 1)):
            np.testing.assert_allclose(text[0, frame], (1 - share) * now + share * last, atol=3e-6)
        np.testing.assert_allclose(
            text[1], np.broadcast_to(states("a (green:1.3) cube"), (3, 20, 8)), atol=3e-6
        )
        other = away.at(jnp.full(2, t)).text
        np.testing.assert_allclose(other[1, 0], states("ring"), atol=3e-6)
        np.testing.assert_allclose(other[1, 2], states("cube"), atol=3e-6)
    some = found.of_frames(jnp.asarray([2, 0])).at(jnp.full(2, times[0])).text
    np.testing.assert_allclose(some, found.at(jnp.full(2, times[0])).text[:, [2, 0]], atol=1e-6)


def test_a_picture_is_told_the_first_frame():
    ids, _ = FOUR.ids(["0: a red ball, 5: a star"])
    np.testing.assert_array_equal(ids, FOUR.ids(["a red ball"])[0])


@pytest.mark.parametrize("pooled", [None, 6])
def test_the_network_reads_texts_by_frame(pooled):
    unet = dataclasses.replace(tiny.INFLATED, motion=None, pooled_width=pooled, size_ids_width=4)
    rng = np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    x, t = array(2, 3, 5, 7, 4), jnp.asarray([100.0, 700.0])
    whole = Context(array(2, 3, 6, 8), array(2, 4, 8), jnp.asarray([[0, 0.5, 1], [1, 1, 2.0]]))
    if pooled:
        whole = whole.replace(pooled=array(2, 3, 6), size_ids=array(2, 6))
    network = UNet(unet)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, t, whole)
    params = tiny.random(shapes["params"], 1)
    apply = quick(lambda x, context: network.apply({"params": params}, x, t, context))
    found = apply(x, whole)
    for frame in range(3):
        alone = whole.replace(text=whole.text[:, frame], image_scale=whole.image_scale[:, frame])
        if pooled:
            alone = alone.replace(pooled=whole.pooled[:, frame])
        expected = apply(x[:, frame : frame + 1], alone)
        np.testing.assert_allclose(found[:, frame], expected[:, 0], atol=5e-6)


def test_a_chain_of_a_changing_prompt_is_that_of_its_parts():
    """Where all frames and steps read one text, it is the prompt alone."""
    given = {"keys": keys.seeds([3]), "steps": 2, "guidance": 3.0}
    one = FOUR.i2v(["a red ball"], PICTURES[:1], **given)
    other = FOUR.i2v(["0: a red ball, 2: a star"], PICTURES[:1], **given)
    same = FOUR.i2v(["0: a red ball, 1: a red ball, 200: a star"], PICTURES[:1], **given)
    near = FOUR.i2v(["[a red ball:a star:1.0]"], PICTURES[:1], **given)
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one - near).max() < 1e-4
    assert 0 < np.abs(one - same).max() < np.abs(one - other).max()
