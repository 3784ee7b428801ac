"""Cases of `test_meshes` that are diffusion stages: networks, sampling chains, training losses."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from mesh_case import Case, Made, inflated, normal, of_shapes, spatial

from mv2_jax import numbers, shards
from mv2_jax.config import SparseControlConfig, TextConfig, UNetConfig
from mv2_jax.diffusion import guidance, keys
from mv2_jax.models.backbone import denoise
from mv2_jax.models.controlnet import ControlNet
from mv2_jax.models.sparse_control import SparseControlNet, given_frames
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context
from mv2_jax.stages import caching, chain, controls, i2v, t2i, v2v
from mv2_jax.stages import stage as stages
from mv2_jax.train.preference import dpo_loss

SECOND = TextConfig(  # SDXL's
    tiny.TEXT.vocab_size,
    20,
    12,
    2,
    2,
    16,
    "gelu",
    projection=6,
    eos_token_id=tiny.TEXT.eos_token_id,
)


def flat(tree: Any) -> Any:
    """[R, B, ...] -> [R * B, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def of_network(case: Case) -> Made:
    """A stage's networks, as its backbone's entry takes them: x, t, and what they are told."""
    lead = case.rows, case.batch
    moving = case.kind != "t2i"
    unet = UNet(inflated(case, True) if moving else spatial(case))
    x, t = normal(1, *lead, case.frames, *case.plane, 4), 500 + 100 * normal(2, *lead)
    told = {
        "text": normal(3, *lead, 5, 8),
        "image": normal(4, *lead, 4, 8),
        "scale": normal(5, *lead),
        "shown": None,
    }
    control: Any = None
    if case.kind == "sparse":
        body = dataclasses.replace(inflated(case, False), in_channels=4)
        control = SparseControlNet(SparseControlConfig(body))
        told["shown"] = normal(6, *lead, *case.plane, 4)
    elif moving:
        control = ControlNet(dataclasses.replace(tiny.CONTROL, unet=spatial(case)))
        told["shown"] = normal(6, *lead, *case.pixels, 3)

    def apply(params: Any, x: Any, t: Any, told: Any) -> Any:
        residuals, text = None, told["text"]
        if case.kind == "sparse":
            whole = given_frames(told["shown"][:, None], (0,), shards.frames(x.shape[1]))
            own = (shards.own(part) for part in whole)
            residuals = control.apply(
                {"params": params["control"]}, *own, t, Context(text), told["scale"]
            )
        elif moving:
            residuals = control.apply(
                {"params": params["control"]}, x, t, Context(text), told["shown"], told["scale"]
            )
        context = Context(text, told["image"], told["scale"]) if moving else Context(text)
        return unet.apply({"params": params["unet"]}, x, t, context.replace(residuals=residuals))

    def network(params: Any, x: Any, t: Any, told: Any) -> Any:
        out = apply(params, *flat((x, t, told)))
        return out.reshape(x.shape)

    def shapes(key: Any) -> Any:
        one, now, given = jax.tree.map(lambda leaf: leaf[0, :1], (x, t, told))
        context = Context(given["text"], given["image"]) if moving else Context(given["text"])
        made = {"unet": unet.init(key, one, now, context)["params"]}
        if case.kind == "sparse":
            parts = given_frames(given["shown"][:, None], (0,), case.frames)
            made["control"] = control.init(key, *parts, now, Context(given["text"]))["params"]
        elif moving:
            text = Context(given["text"])
            made["control"] = control.init(key, one, now, text, given["shown"])["params"]
        return made

    return functools.partial(denoise, network), of_shapes(shapes), (x, t, told)


def stage(case: Case, name: str) -> tuple[Any, Any, dict[str, Any]]:
    """(config, parameters, raw inputs) of a stage: "t2i", "sdxl", "i2v" or "v2v".

    A deep one's motion modules know three frames, so that longer clips go in windows.
    """
    networks = dict(tiny.NETWORKS)
    if name in ("i2v", "v2v"):
        own = dataclasses.replace(tiny.KEYFRAMES, unet=inflated(case, True), frames=case.frames)
        own = dataclasses.replace(own, window=3 if case.deep else None, overlap=1)
        networks["control"] = dataclasses.replace(tiny.CONTROL, unet=spatial(case))
    else:
        own = dataclasses.replace(tiny.PICTURE, unet=spatial(case))
    if name == "sdxl":
        networks["text_encoder_2"] = SECOND
        own = dataclasses.replace(own, unet=_wide(own.unet))
    own = dataclasses.replace(own, size=case.pixels)
    cfg = stages.build("t2i" if name == "sdxl" else name, own, networks, tiny.VAE.factor)
    rng = np.random.default_rng(5)
    ids = rng.integers(3, tiny.TEXT.vocab_size, (2, case.batch, 9)).astype(np.int32)
    image = rng.uniform(-1, 1, (case.batch, *case.pixels, 3)).astype(np.float32)
    return cfg, of_shapes(functools.partial(stages.init, cfg)), _asked(cfg, ids, image)


def _wide(unet: UNetConfig) -> UNetConfig:
    """As SDXL's: it reads both encoders side by side, and a pooled text."""
    width = tiny.TEXT.width + SECOND.width
    pooled = SECOND.projection
    return dataclasses.replace(unet, context_width=width, pooled_width=pooled, size_ids_width=8)


def _asked(cfg: Any, ids: np.ndarray, image: np.ndarray) -> dict[str, Any]:
    given = {"ids": ids[0], "negative": ids[1], "image": image}
    return {name: x for name, x in given.items() if name in cfg.inputs}


def of_loss(name: str, case: Case) -> Made:
    """A training step's loss, encoders and all, and the gradient of every parameter."""
    cfg, params, asked = stage(case, name)
    latent = normal(6, case.batch, *cfg.latent_shape)

    def run(params: Any, latent: Any, asked: Any) -> Any:
        batch = {**asked, "latent": latent, "null_ids": asked["negative"][0]}
        return jax.value_and_grad(lambda p: stages.loss(p, cfg, batch, keys.seed(3))[0])(params)

    return run, params, (latent, asked)


def of_dpo_loss(case: Case) -> Made:
    """Diffusion-DPO's on pictures, and the gradient of every parameter."""
    cfg, params, asked = stage(case, "t2i")
    better, worse = (normal(seed, case.batch, *cfg.latent_shape) for seed in (6, 7))

    def run(params: Any, better: Any, worse: Any, asked: Any) -> Any:
        each = keys.per_sample(keys.seed(3), case.batch)

        def model(tree: Any) -> Any:
            conditioning = stages.drop(tree, cfg, asked, each, {})
            conditioning = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), conditioning)
            return functools.partial(stages.predict_one, tree, cfg, conditioning=conditioning)

        def loss(params: Any) -> Any:
            before = jax.tree.map(lambda leaf: 0.9 * leaf, params)
            models = model(params), model(before)
            return dpo_loss(*models, better, worse, each, cfg.stage.schedule, 5.0)[0]

        return jax.value_and_grad(loss)(params)

    return run, params, (better, worse, asked)


def _weights(case: Case, cfg: Any) -> dict[str, Any]:
    """By frame, from a part of the chain on and up to one, for its look, its layout and motion."""
    several = {"strength": 0.7} if cfg.name == "v2v" else {}
    keyframes = np.zeros((case.batch, case.frames, *case.pixels, 3)) if several else None
    own = numbers.STAGES[cfg.name](
        image_frames="0:0.5,1:1.2",
        image_start=0.5,
        control_frames="0:1,2:0.3",
        control_end=0.5,
        motion_frames="0:0.8,3:1.1",
        **several,
    )
    return controls.inputs(cfg, own, 3 if several else 2, keyframes, case.batch)


def of_chain(name: str, case: Case) -> Made:
    """Two guided steps: from noise, from noise about a picture, or part-way from keyframes; of a
    deep one, conditions count otherwise from frame to frame and for a part of the chain alone."""
    cfg, params, asked = stage(case, name)
    if case.deep and name in ("i2v", "v2v"):
        asked |= _weights(case, cfg)
    given = {
        "i2v": normal(7, case.batch, *cfg.latent_shape[1:]),
        "v2v": normal(7, case.batch, *cfg.latent_shape),
    }.get(name)
    scales = guidance.make(3.0, 1.5)

    def run(params: Any, given: Any, asked: Any) -> Any:
        last = keys.per_sample(keys.seed(3), case.batch), scales
        if name == "i2v":
            first = (params, cfg, asked, given, *last)
            return i2v.sample(*first, noise_prior=1.0, steps=2, free_init=int(case.deep))
        if name == "v2v":
            return v2v.sample(params, cfg, asked, given, *last, strength=0.7, steps=3)
        return t2i.sample(params, cfg, asked, *last, steps=2)

    return run, params, (given, asked)


def of_cached_chain(case: Case) -> Made:
    """Four guided steps of I2V, of which every other runs the backbone's outer part alone."""
    cfg, params, asked = stage(case, "i2v")
    x, scales, rule = normal(7, case.batch, *cfg.latent_shape), guidance.make(3.0), cfg.rule

    def run(params: Any, x: Any, asked: Any) -> Any:
        told = stages.condition(params, asked, cfg=cfg, rule=rule)
        _, grid = chain.program(cfg.stage, 4)
        state = chain.begin(cfg, grid, x, keys.per_sample(keys.seed(3), case.batch))
        state = caching.begin(state, cfg=cfg, rule=rule, branch=1)
        given = (params, told, scales, state, np.int32(2))
        return chain.advance(*given, cfg=cfg, rule=rule, steps=4, branch=1).x

    return run, params, (x, asked)
