"""Ways through whole chains beside diffusers' pipelines: prompts that change, several pictures,
windows, FreeInit, samplers with noise."""

import importlib
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from pipelines import (
    ADVANCE,
    BOUND,
    CONDITION,
    FRAMES,
    GUIDANCE,
    KEYS,
    NEGATIVE,
    PROMPTS,
    Torch,
    cascades,
    diffusers,
    first,
    ours,
    pictures,
    public,
    torch,
)
from torch_chains import drift

from mv2_jax.diffusion import free_init, guidance, keys
from mv2_jax.stages import chain, controls, i2v

__all__ = ["cascades", "public"]  # fixtures
STEPS = 6
pytestmark = pytest.mark.slow


def begun(cfg, steps=STEPS, sample_keys=KEYS):
    plane = (len(sample_keys), *cfg.latent_shape[1:])
    return i2v.start(sample_keys, jnp.zeros(plane), np.float32(0), cfg=cfg, steps=steps)


def own_cascade(cascades, **changes):
    return cascades("frame").with_stage("i2v", **changes)


def test_prompts_travel_as_in_freenoise(public, cascades):
    """Its own texts are mixed by its own code; FreeNoise's windows hold the whole clip."""
    four = cascades("frame")
    cfg, said = four.keyframes, {0: "a lighthouse", 2: "two cats"}
    state = begun(cfg)
    times = chain.program(cfg.stage, STEPS)[1].t
    travel = ", ".join(f"{frame}: {text}" for frame, text in said.items())
    ids, away = four.ids([travel] * 2, NEGATIVE, FRAMES, times)
    mine = ours(four, "i2v", state, 0.0, 0.0, STEPS, ids=ids, negative=away)
    encoder, theirs = public[0]["text_encoder"], []

    @torch.no_grad()
    def encode(texts):
        rows = torch.from_numpy(np.array(four.tokenizer.encode(list(texts)))).long()
        return encoder(rows).last_hidden_state

    def told(prompt, *_, negative_prompt=None, **__):
        return encode(prompt), negative_prompt and encode(negative_prompt)

    for n in range(2):
        side = Torch(public, n, pictured=False)

        def free_noise(pipeline):
            pipeline.encode_prompt = told
            pipeline.motion_adapter = public[0]["motion"]
            pipeline.enable_free_noise(context_length=FRAMES, context_stride=FRAMES)

        given = {"prompt": dict(said), "negative_prompt": NEGATIVE, "ready": free_noise}
        theirs.append(side.run("AnimateDiffPipeline", first(state, n), None, steps=STEPS, **given))
    assert drift(mine, [np.concatenate(step) for step in zip(*theirs)]) < BOUND


def test_several_pictures_of_one_adapter(public, cascades):
    four = cascades("frame")
    image = pictures()[1]
    looks = np.stack([image[::-1], image[:, ::-1]], axis=1)  # two more for each sample
    state = begun(four.keyframes)
    mine = ours(four, "i2v", state, 1.0, 0.0, STEPS, looks=looks)
    ids, theirs = four.ids(PROMPTS, NEGATIVE), []
    for n in range(2):
        side = Torch(public, n)
        shown = [image[n], *looks[n]]
        embeds = [torch.cat([side.picture(picture[None])[0] for picture in shown], dim=1)]
        given = {"ip_adapter_image_embeds": embeds}
        theirs.append(side.run("AnimateDiffPipeline", first(state, n), ids, steps=STEPS, **given))
    assert drift(mine, [np.concatenate(step) for step in zip(*theirs)]) < BOUND


class Windowed:
    """diffusers' UNet by AnimateDiff-Evolved's rule: outputs of windows, averaged with weights."""

    def __init__(self, network, starts, window, weights):
        self.plain, self.starts, self.window = network.forward, starts, window
        self.weights = torch.tensor(weights, dtype=torch.float32)[None, None, :, None, None]
        self.step = 0
        network.forward = self

    def __call__(self, sample, t, encoder_hidden_states, **given):
        batch, _, frames = sample.shape[:3]
        text = encoder_hidden_states.reshape(batch, frames, *encoder_hidden_states.shape[1:])
        added, counts = torch.zeros_like(sample), torch.zeros(1, 1, frames, 1, 1)
        for begin in self.starts[self.step]:
            at = [(begin + k) % frames for k in range(self.window)]
            words = text[:, at].flatten(0, 1)
            out = self.plain(sample[:, :, at], t, encoder_hidden_states=words, **given)[0]
            added[:, :, at] += self.weights * out
            counts[:, :, at] += self.weights
        self.step += 1
        return SimpleNamespace(sample=added / counts)


# Where AnimateDiff-Evolved (d8d163c) begins windows of 8 in 24 frames, overlapping by 2, by step.
STARTS = {
    "uniform": [[0, 6, 12, 16], [12, 16, 0, 6], [6, 12, 16, 0], [16, 0, 6, 12], [3, 9, 15, 16, 0],
                [15, 16, 0, 3, 9]],
    "closed": [[0, 6, 12, 18], [12, 18, 0, 6], [6, 12, 18, 0], [18, 0, 6, 12], [3, 9, 15, 21],
               [15, 21, 3, 9]],
}  # fmt: skip


@pytest.mark.parametrize(
    "context, fuse",
    [("uniform", "pyramid"), pytest.param("closed", "flat", marks=pytest.mark.long)],
)
def test_windows_over_24_frames(public, cascades, context, fuse):
    four = own_cascade(cascades, frames=24, overlap=2, context=context, blend=fuse)
    cfg = four.keyframes
    assert cfg.stage.windows == (8, 2)
    state = begun(cfg)
    mine = ours(four, "i2v", state, 0.0, 0.0, STEPS)
    ids, theirs = four.ids(PROMPTS, NEGATIVE), []
    own = [1, 2, 3, 4, 4, 3, 2, 1] if fuse == "pyramid" else [1] * 8
    for n in range(2):
        side = Torch(public, n, pictured=False)
        Windowed(side.unet, STARTS[context], 8, own)
        given = {"num_frames": 24}
        theirs.append(side.run("AnimateDiffPipeline", first(state, n), ids, steps=STEPS, **given))
    assert drift(mine, [np.concatenate(step) for step in zip(*theirs)]) < BOUND


def test_free_init(public, cascades, monkeypatch):
    """From the last training step, with unit noise, over even planes: where the two agree."""
    schedule = {"spacing": "trailing"}
    four = cascades("frame")
    stage = four.keyframes.stage
    stage = stage.schedule.__class__(**{**vars(stage.schedule), **schedule})
    four = four.with_stage("i2v", schedule=stage, size=(48, 64))
    cfg, params = four.keyframes, four.parameters("i2v")
    state = begun(cfg)
    inputs = dict(zip(("ids", "negative"), four.ids(PROMPTS, NEGATIVE)))
    inputs |= {"image": jnp.asarray(pictures()[1]), "image_scale": np.float32(0)}
    inputs["control_scale"] = np.float32(0)
    scales = guidance.make(GUIDANCE)
    rule, mine = cfg.rule.least(scales), []
    told, now = CONDITION(params, inputs, cfg=cfg, rule=rule), state
    for turn in range(3):
        if turn:
            now = chain.again(KEYS, now.x, jnp.int32(turn - 1), cfg=cfg, steps=STEPS)
        for _ in range(STEPS):
            now = ADVANCE(params, told, scales, now, cfg=cfg, rule=rule, steps=STEPS, k=1)
            mine.append(np.moveaxis(np.asarray(now.x), -1, 1))
    theirs = []
    for n in range(2):
        side = Torch(public, n, pictured=False)
        side.scheduler = diffusers.DDIMScheduler.from_config(
            side.scheduler.config, timestep_spacing="trailing"
        )
        turns = iter(range(3))

        def noise(*_, sample=n, turns=turns, **__):
            fresh = keys.fold(keys.fold(KEYS, "i2v free init"), next(turns))
            made = np.array(keys.normal(fresh, cfg.latent_shape))[sample][None]
            return torch.from_numpy(made).permute(0, 4, 1, 2, 3)

        utils = importlib.import_module("diffusers.pipelines.free_init_utils")
        monkeypatch.setattr(utils, "randn_tensor", noise)

        def ready(pipeline):
            pipeline.enable_free_init(3, method="butterworth", order=4)

        given = {"ready": ready, "size": (48, 64)}
        ids = four.ids(PROMPTS, NEGATIVE)
        theirs.append(side.run("AnimateDiffPipeline", first(state, n), ids, steps=STEPS, **given))
    assert free_init.KINDS[0] == "butterworth" and len(mine) == 3 * STEPS
    assert drift(mine, [np.concatenate(step) for step in zip(*theirs)]) < 3 * BOUND


SCHEDULERS = {
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
}


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_samplers_with_noise(public, cascades, monkeypatch, sampler):
    """Both get the same noise at every step."""
    four = own_cascade(cascades, sampler=sampler)
    cfg = four.keyframes
    state = begun(cfg)
    mine = ours(four, "i2v", state, 0.0, 0.0, STEPS)
    name, settings = SCHEDULERS[sampler]
    ids, theirs = four.ids(PROMPTS, NEGATIVE), []
    for n in range(2):
        side = Torch(public, n, pictured=False)
        cls = getattr(diffusers, name)
        side.scheduler = cls.from_config(side.scheduler.config, **settings)
        steps = iter(range(STEPS))

        def noise(*_, sample=n, steps=steps, **__):
            step = keys.fold(keys.fold(state.keys, "sampler"), next(steps))
            made = np.array(keys.normal(step, cfg.latent_shape))[sample][None]
            return torch.from_numpy(made).permute(0, 4, 1, 2, 3)

        monkeypatch.setattr(importlib.import_module(cls.__module__), "randn_tensor", noise)
        eps = np.array(chain.noise(KEYS, cfg))[n][None]
        eps = torch.from_numpy(eps).permute(0, 4, 1, 2, 3)
        states = side.run("AnimateDiffPipeline", eps, ids, steps=STEPS)
        if sampler == "euler_a":  # its samples are scaled so that the signal is 1
            sigmas = np.asarray(side.scheduler.sigmas)[1:]
            states = [x / np.sqrt(1 + s**2) for x, s in zip(states, sigmas)]
        theirs.append(states)
    assert drift(mine, [np.concatenate(step) for step in zip(*theirs)]) < BOUND


def test_motion_scale(public, cascades):
    """Keys of attention over time times a number: as if their projections were so much larger."""
    four = cascades("frame")
    state = begun(four.keyframes)
    own = four.numbers["i2v"].__class__(motion_scale=1.4)
    more = {"motion_scale": controls.inputs(four.keyframes, own, STEPS, batch=2)["motion_scale"]}
    mine = ours(four, "i2v", state, 0.0, 0.0, STEPS, **more)
    ids, theirs = four.ids(PROMPTS, NEGATIVE), []
    for n in range(2):
        side = Torch(public, n, pictured=False)
        for name, module in side.unet.named_modules():
            if ".motion_modules." in name and name.endswith(".to_k"):
                module.weight.data *= 1.4
        theirs.append(side.run("AnimateDiffPipeline", first(state, n), ids, steps=STEPS))
    assert drift(mine, [np.concatenate(step) for step in zip(*theirs)]) < BOUND
