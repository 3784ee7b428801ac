"""Whole guided chains of video beside diffusers' pipelines, from converted checkpoints.

Small networks with random weights, saved by their libraries and converted here; both sides get the
same noise, pictures and token ids, and take 25 guided steps over odd planes. Latents are compared
after every step.

diffusers is corrected where it is known to err, and only there:

- Its motion modules normalise whole clips. A cascade of "clip" scope is compared with it as it is;
  one of "frame" scope, which is what AnimateDiff's own code computes, with each of those norms
  given one frame at a time.
- It mixes the pictures of a batch in its IP-Adapter. It is run on one sample at a time, and the
  samples here together.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from pipelines import (
    BOUND,
    FRAMES,
    KEYS,
    NEGATIVE,
    PROMPTS,
    STEPS,
    Torch,
    cascades,
    first,
    ours,
    pictures,
    public,
)
from torch_chains import drift

from mv2_jax.diffusion import keys
from mv2_jax.stages import i2v, v2v

__all__ = ["cascades", "public"]  # fixtures


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["clip", "frame"])
def test_text_to_video(public, cascades, scope):
    """AnimateDiffPipeline; here without a picture and from plain noise."""
    four = cascades(scope)
    z = jnp.zeros((2, 5, 7, 4))
    state = i2v.start(KEYS, z, np.float32(0), cfg=four.keyframes, steps=STEPS)
    mine = ours(four, "i2v", state, 0.0, 0.0)
    ids = four.ids(PROMPTS, NEGATIVE)
    theirs = [
        Torch(public, n, scope, pictured=False).run("AnimateDiffPipeline", first(state, n), ids)
        for n in range(2)
    ]
    assert len(mine) == STEPS
    assert drift(mine, [np.concatenate(step) for step in zip(*theirs)]) < BOUND


@pytest.mark.slow
def test_picture_to_video(public, cascades):
    """AnimateDiffControlNetPipeline with an IP-Adapter-Plus, as it guides: away from the negative
    prompt without the picture's tokens, but with its ControlNet. The chain starts with the latent
    noise prior, which is the forward process at the first timestep."""
    four = cascades("frame")
    z = four.encode(pictures()[1])
    state = i2v.start(KEYS, z, np.float32(1), cfg=four.keyframes, steps=STEPS)
    mine = ours(four, "i2v", state)
    ids, theirs = four.ids(PROMPTS, NEGATIVE), []
    for n in range(2):
        side = Torch(public, n)
        latents = side.noised(side.latents(), 0, keys.fold(KEYS, "i2v noise"))
        np.testing.assert_allclose(first(state, n), latents, rtol=0, atol=BOUND)
        picture = side.picture()
        name = "AnimateDiffControlNetPipeline"
        theirs.append(side.run(name, latents, ids, ip_adapter_image_embeds=picture))
    assert len(mine) == STEPS
    assert drift(mine, [np.concatenate(step) for step in zip(*theirs)]) < BOUND


@pytest.mark.slow
def test_sparse_picture_to_video(public, cascades):
    """AnimateDiffSparseControlNetPipeline, the picture given as the first frame alone."""
    four = cascades("frame", "sparse")
    z = four.encode(pictures()[1])
    state = i2v.start(KEYS, z, np.float32(0), cfg=four.keyframes, steps=STEPS)
    mine = ours(four, "i2v", state, image_scale=0.0)  # the picture's tokens are other tests'
    ids, name = four.ids(PROMPTS, NEGATIVE), "AnimateDiffSparseControlNetPipeline"
    theirs = [
        Torch(public, n, pictured=False).run(
            name, first(state, n), ids, controlnet_frame_indices=[0]
        )
        for n in range(2)
    ]
    assert len(mine) == STEPS
    assert drift(mine, [np.concatenate(step) for step in zip(*theirs)]) < BOUND


@pytest.mark.slow
@pytest.mark.parametrize("strength, steps", [(0.3, 7), (1.0, 25)])
def test_video_to_video(public, cascades, strength, steps):
    """AnimateDiffVideoToVideoControlNetPipeline with an IP-Adapter-Plus, as it guides."""
    four = cascades("frame")
    clips = (
        pictures()[1][:, None]
        * np.linspace(0.4, 1, FRAMES, dtype=np.float32)[None, :, None, None, None]
    )
    z = four.encode(clips)
    cfg = four.refined
    state = v2v.start(KEYS, z, np.float32(strength), cfg=cfg, steps=STEPS)
    mine = ours(four, "v2v", state)
    ids, theirs = four.ids(PROMPTS, NEGATIVE), []
    for n in range(2):
        side = Torch(public, n)
        latents = side.noised(side.latents(clips[n]), STEPS - steps, keys.fold(KEYS, "v2v noise"))
        np.testing.assert_allclose(first(state, n), latents, rtol=0, atol=BOUND)
        picture = side.picture()
        name = "AnimateDiffVideoToVideoControlNetPipeline"
        given = {"strength": strength, "ip_adapter_image_embeds": picture}
        theirs.append(side.run(name, latents, ids, **given))
    assert len(mine) == steps
    assert drift(mine, [np.concatenate(step) for step in zip(*theirs)]) < BOUND
