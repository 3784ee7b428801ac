"""The three stages one after the other as one function: under jit, vmap and grad."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mv2_jax.diffusion import guidance, keys
from mv2_jax.stages import i2v, latents, t2i, v2v

PROMPT = ["a red ball"]


@pytest.mark.long
def test_a_prompt_s_whole_way_is_jitted_vmapped_and_has_its_slope():
    four, key = tiny.make(), keys.seeds([3])
    inputs = dict(zip(("ids", "negative"), four.ids(PROMPT)))
    vae = four.params["vae"], four.vae

    def small(pixels, stage):
        return latents.encode(*vae, latents.resize(pixels, stage.size), jnp.float32)

    def whole(scale, steps=1):
        of, each = guidance.make(scale), {"steps": steps}
        z = t2i.sample(four.parameters("t2i"), four.picture, inputs, key, of, **each)
        image = latents.decode(*vae, z[:, 0], jnp.float32)
        shown = {**inputs, "image": image}
        given = (four.parameters("i2v"), four.keyframes, shown)
        reference = small(image, four.keyframes.stage)
        z = i2v.sample(*given, reference, key, of, noise_prior=0.5, **each)
        clip = small(latents.decode(*vae, z, jnp.float32), four.refined.stage)
        given = (four.parameters("v2v"), four.refined, shown)
        return v2v.sample(*given, clip, key, of, strength=1.0, **each)

    # It is what the cascade makes.
    call = {"keys": key, "steps": 1, "guidance": 2.0}
    image = four.t2i(PROMPT, **call)
    clip = four.i2v(PROMPT, image, noise_prior=0.5, **call)
    made = four.v2v(PROMPT, image, clip, strength=1.0, **call)
    traced = jax.jit(whole)(jnp.float32(2))
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(latents.decode(*vae, traced, jnp.float32), made)
    # Its slope over the guidance of every stage is that of finite differences.
    score = jax.jit(lambda scale: jnp.mean(whole(scale) ** 2))
    scales = jnp.asarray([1.5, 2.0])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(score)))(scales)
    close(values, [score(scale) for scale in scales])
    h = 0.02
    found = [(score(scale + h) - score(scale - h)) / (2 * h) for scale in scales]
    print(slopes, found)
    np.testing.assert_allclose(slopes, found, rtol=0.02)
