"""Presets of full-size cascades: on abstract arrays from end to end, and which one is picked."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from mv2_jax.config import StageConfig
from mv2_jax.configs import paper, presets, sd15, sdxl
from mv2_jax.configs.few_steps import FEW_STEPS, few
from mv2_jax.convert import schedules
from mv2_jax.diffusion import guidance, keys, samplers
from mv2_jax.errors import InputError
from mv2_jax.infer import rehearse
from mv2_jax.stages import chain, i2v, interpolators, latents, t2i, v2v
from mv2_jax.stages import stage as stages


def end_to_end(preset, steps=3):
    """Shapes of what every stage makes, from prompts, parameters and keys of shapes alone."""
    params = {name: rehearse.shapes(preset, name) for name in ("t2i", "i2v", "vfi")}
    second_motion = {"motion_v2v" if k == "motion_i2v" else k: v for k, v in params["i2v"].items()}
    params["v2v"] = second_motion  # the same shapes: tracing is what takes the time here
    four = rehearse.build(preset, {}, "float32")
    ids = four.ids([rehearse.PROMPT])
    encode = partial(latents.encode, cfg=preset.VAE)
    decode = partial(latents.decode, cfg=preset.VAE)
    scales, one = guidance.make(7.5, 1.5), jnp.float32(1)
    inputs = dict(zip(("ids", "negative"), ids))

    def end(tree, cfg, inputs, state):
        conditioning = stages.condition(tree, inputs, cfg=cfg, rule=cfg.rule)
        static = {"cfg": cfg, "rule": cfg.rule, "steps": steps}
        return chain.advance(tree, conditioning, scales, state, **static).x

    def picture(tree, key):
        held = {name.removeprefix("t2i_"): leaf for name, leaf in tree.items()}
        held["spatial"] = held.pop("unet")
        state = t2i.start(key, cfg=four.picture, steps=steps)
        z = end(held, four.picture, inputs, state)[:, 0]
        return z, latents.decode(held["vae"], preset.PICTURE_VAE, z)

    def moving(tree, key, image, start, cfg, number):
        tree = dict(tree)
        tree["motion"] = tree.pop(next(name for name in tree if name.startswith("motion_")))
        z = end(tree, cfg, {**inputs, "image": image}, start(key, cfg, tree, number))
        return z, decode(tree["vae"], latents=z)

    def first(key, cfg, tree, image):
        z = encode(tree["vae"], pixels=latents.resize(image, cfg.stage.size))
        return i2v.start(key, z, one, cfg=cfg, steps=steps)

    def second(key, cfg, tree, frames):
        z = encode(tree["vae"], pixels=latents.resize(frames, cfg.stage.size))
        return v2v.start(key, z, one / 2, cfg=cfg, steps=steps)

    def whole(params, key):
        z0, image = picture(params["t2i"], key)
        z1, keyframes = moving(params["i2v"], key, image, first, four.keyframes, image)
        z2, refined = moving(params["v2v"], key, image, second, four.refined, keyframes)
        between = int(preset.DEFAULTS["vfi"]["between"])
        frames = interpolators.interpolate(
            params["vfi"]["interpolator"], preset.RIFE, refined, between + 1
        )
        return {"latents": (z0, z1, z2), "pixels": (image, keyframes, refined, frames)}

    made = jax.eval_shape(whole, params, keys.seeds([0]))
    return jax.tree.map(lambda leaf: leaf.shape, made)


@pytest.mark.slow
def test_the_paper_from_prompt_to_video():
    """Odd planes and all: 75 and 131 cells a side, and 94 frames at the end."""
    made = end_to_end(paper)
    assert made["latents"] == ((1, 128, 128, 4), (1, 32, 75, 75, 4), (1, 32, 131, 131, 4))
    assert made["pixels"] == (
        (1, 1024, 1024, 3),
        (1, 32, 600, 600, 3),
        (1, 32, 1048, 1048, 3),
        (1, 94, 1048, 1048, 3),
    )


@pytest.mark.parametrize("name", presets.PRESETS)
def test_schedules_are_those_of_stable_diffusion_and_animatediff(name):
    preset = presets.PRESETS[name]
    kind, end = ("scaled_linear", 0.02) if name == "sdxl" else ("linear", 0.012)
    for stage in (preset.I2V, preset.V2V):
        schedule = stage.schedule
        assert (schedule.kind, schedule.beta_start, schedule.beta_end) == (kind, 0.00085, end)
        assert (schedule.steps_offset, schedule.prediction) == (1, "eps")
        grid = samplers.get(stage.sampler)().grid(schedule, stage.steps)
        assert (stage.steps, grid.t[0]) == (25, 961)
        if name != "sdxl":
            assert abs(grid.alpha[0] - 0.0498) < 5e-5  # what was seen in diffusers
        # What the converters say of modules in such a UNet, and the preset, are one.
        assert schedules.video(preset.T2I.schedule, stage.unet) == schedule
    assert preset.T2I.schedule.kind == "scaled_linear"


def folder(**changes):
    """What `complete` asks of a cascade folder."""
    configs = {
        "spatial": sd15.SPATIAL,
        "motion_i2v": sd15.VIDEO.motion,
        "motion_v2v": dataclasses.replace(sd15.VIDEO.motion, max_frames=24),
        **changes.pop("configs", {}),
    }
    made = {"name": "mine", "folder": "mine", "stages": {}, "defaults": {}, **changes}
    return dataclasses.make_dataclass(
        "Folder", [*made, "components"], namespace={"config": lambda self, name: configs[name]}
    )(**made, components=configs)


def test_what_a_folder_does_not_say_the_preset_that_fits_does():
    made = presets.complete(folder(defaults={"i2v": {"guidance": 3.0}}))
    assert made.stages["t2i"] == sd15.T2I
    assert made.stages["i2v"] == sd15.I2V
    assert made.stages["v2v"].unet.motion.max_frames == 24
    assert made.defaults["i2v"] == {"guidance": 3.0, "noise_prior": 0.0}
    large = presets.complete(folder(configs={"t2i_unet": paper.PICTURE}))
    assert large.stages["t2i"] == paper.T2I and large.stages["i2v"] == paper.I2V
    whole = presets.complete(folder(configs={"spatial": paper.PICTURE}))
    assert (whole.stages["t2i"], whole.stages["i2v"].size) == (sdxl.T2I, (1024, 1024))
    assert whole.stages["i2v"].unet.pooled_width == 1280 and whole.stages["v2v"].frames == 16
    # 32 keyframes of modules that know 24: in windows.
    assert large.stages["v2v"].frames == 32 and large.stages["v2v"].windows == (24, 6)


def test_a_folder_that_says_all_is_left_alone_unless_a_preset_is_asked_for():
    own = StageConfig(sd15.VIDEO, sd15.MOVING, (256, 256), frames=8, sampler="euler")
    whole = folder(stages={"t2i": sd15.T2I, "i2v": own, "v2v": own})
    assert presets.complete(whole) is whole
    larger = presets.complete(whole, "paper")
    assert larger.stages["i2v"] == dataclasses.replace(own, size=(600, 600), frames=32)
    with pytest.raises(InputError, match="did you mean 'paper'"):
        presets.complete(whole, "papr")
    toy = folder(configs={"spatial": SimpleNamespace(channels=(128, 128), pooled_width=None)})
    assert presets.complete(toy) is toy
    with pytest.raises(InputError, match="is for weights of SD1\\.5's size"):
        presets.complete(toy, "sd15")
    with pytest.raises(InputError, match="is for weights of SDXL's size"):
        presets.complete(whole, "sdxl")


def test_few_step_programs_start_from_the_last_timestep():
    starts = {"lightning": [999, 749, 499, 249], "lcm": [999, 839, 679, 499, 339, 179]}
    for name, expected in starts.items():
        stage = few(dataclasses.replace(sd15.I2V, schedule=sd15.STILL), name)
        assert stage.schedule.kind == "linear" and stage.steps == FEW_STEPS[name].steps
        grid = samplers.get(stage.sampler)().grid(stage.schedule, stage.steps)
        assert grid.t.tolist() == expected
