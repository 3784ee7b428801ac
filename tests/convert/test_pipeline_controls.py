"""What users vary beside numbers, over whole chains beside diffusers' pipelines."""

import numpy as np
import pytest
from PIL import Image
from pipelines import (
    BOUND,
    FRAMES,
    KEYS,
    NEGATIVE,
    PROMPTS,
    Torch,
    cascades,
    first,
    ours,
    pictures,
    public,
)
from torch_chains import drift

from mv2_jax import numbers
from mv2_jax.stages import controls, i2v

__all__ = ["cascades", "public"]  # fixtures
STEPS = 8


@pytest.mark.slow
def test_two_controlnets_and_image_tokens_in_parts_of_the_chain(public, cascades):
    """MultiControlNetModel with control_guidance_start and _end, the second with a picture for
    each frame; the IP-Adapter's scale set anew by a callback; two samples together here."""
    four = cascades("frame", "controlnet", "controlnet_2")
    cfg = four.keyframes
    names = [each.name for each in cfg.conditions if each.trees]
    assert names == ["text", "image", "control", "control_2"]
    own = numbers.changed(
        "i2v",
        four.numbers["i2v"],
        {
            "control_scale": "0.8,0.5",
            "control_start": "0,0.25",
            "control_end": "0.5,1",
            "image_start": 0.3,
            "image_end": 0.9,
        },
    )
    assert own.image_scale == 0.5
    raw, clips = pictures()[0], []
    for picture in raw:
        clips.append([np.roll(picture, 8 * frame, 1) for frame in range(FRAMES)])
    state = i2v.start(KEYS, np.zeros((2, 5, 7, 4)), np.float32(0), cfg=cfg, steps=STEPS)
    more = controls.inputs(cfg, own, STEPS, batch=len(PROMPTS))
    more["control_2_image"] = np.asarray(clips, np.float32) / 127.5 - 1
    mine = ours(four, "i2v", state, steps=STEPS, **more)
    ids, theirs = four.ids(PROMPTS, NEGATIVE), []

    def scale(pipeline, i):
        conditioning = i / STEPS >= 0.3 and (i + 1) / STEPS <= 0.9
        pipeline.set_ip_adapter_scale(0.5 if conditioning else 0.0)

    for n in range(2):
        side = Torch(public, n)
        for processor in side.unet.attn_processors.values():
            if hasattr(processor, "scale"):
                processor.scale = [0.0]
        frames = [[Image.fromarray(raw[n])] * FRAMES, [Image.fromarray(x) for x in clips[n]]]
        theirs.append(
            side.run(
                "AnimateDiffControlNetPipeline",
                first(state, n),
                ids,
                steps=STEPS,
                nets=("controlnet", "controlnet_2"),
                each=scale,
                conditioning_frames=frames,
                controlnet_conditioning_scale=[0.8, 0.5],
                control_guidance_start=[0.0, 0.25],
                control_guidance_end=[0.5, 1.0],
                ip_adapter_image_embeds=side.picture(),
            )
        )
    assert len(mine) == STEPS
    assert drift(mine, [np.concatenate(step) for step in zip(*theirs)]) < BOUND
