"""Training the text encoder and the spatial UNet on first frames with their captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import config
from mv2_jax import params as trees
from mv2_jax.diffusion import guidance, keys, losses
from mv2_jax.errors import InputError
from mv2_jax.stages import latents as codec
from mv2_jax.stages import stage as stages
from mv2_jax.stages import t2i
from mv2_jax.text import Tokenizer
from mv2_jax.train import encoded
from mv2_jax.train import source as sources
from mv2_jax.train import words as tokens
from mv2_jax.train.latents import Shards, at_once
from mv2_jax.train.report import grid, to_uint8
from mv2_jax.train.source import Source
from mv2_jax.train.task import Batch, Component, Params, Task, compute_dtype, require


def full(tree: Params) -> Params:
    """Stored half-precision weights as fp32, in which training computes and updates."""
    return trees.cast(tree, np.float32)


def stills(source: Source, vae: Component, size: int, cfg: Any, root: Path) -> Shards:
    """A source's first frames as latents: "latent" [h, w, C] fp16, and its notes."""
    facts = {"what": "first frames", "size": size}
    settings = {"root": root, "data": cfg.data, "chunk": at_once(32, 256), "facts": facts}
    return encoded.shards(source, vae, None, (size, size), **settings)


def make(cfg: Any, begin: Mapping[str, Component], folder: Path) -> Task:
    """The task, over the autoencoder of `begin`; it goes on from text_encoder and spatial there.

    `data.sizes` are the sides of the pictures, taken in turns: the same spatial weights serve I2V
    at its smaller size.

    Raises:
        InputError: no autoencoder to begin from, or a size that is no multiple of its factor.
    """
    (vae,) = require(begin, "vae")
    for size in cfg.data.sizes:
        if size % vae.config.factor:
            raise InputError(f"data.sizes: {size} is not a multiple of {vae.config.factor}")
    source = sources.of(cfg)
    held = begin.get("text_encoder")
    text = held.config if held else config.from_dict(cfg.model.text.to_dict())
    words = tokens.tokenizer(begin, source, text)
    if held:
        tokens.check(text, words)
    else:
        text = tokens.fit(text, words)
    stage = config.from_dict(cfg.model.t2i.to_dict())
    dtype = compute_dtype(cfg.precision)
    configs = {"text_encoder": text}
    net = stages.build("t2i", stage, configs, vae.config.factor, dtype, cfg.remat)
    shape = losses.of(cfg.loss.shape)
    null = jnp.asarray(words.encode([""])[0])

    def init(key: jax.Array) -> Params:
        fresh = jax.jit(stages.init, static_argnums=0)(net, key)
        return {name: full(begin[name].params) if name in begin else fresh[name] for name in fresh}

    def loss(params: Params, frozen: Params, batch: Batch, key: jax.Array):
        del frozen
        batch = {**batch, "latent": batch["latent"].astype(jnp.float32), "null_ids": null}
        chances = {**cfg.loss}
        rates = {name: rate for name, rate in chances.items() if name.startswith("drop_")}
        return stages.loss(params, net, batch, key, rates=rates, shape=shape)

    def batches(seed: int, start: int) -> Iterator[Batch]:
        root = folder.parent / "latents"
        sets = [stills(source, vae, size, cfg, root) for size in cfg.data.sizes]
        step = start
        while True:
            turn, which = divmod(step, len(sets))
            found = sets[which].take(source.pick(seed, turn, cfg.batch, cfg.data.count))
            latent = found.pop("latent")
            notes = {name: found[name] for name in net.inputs if name in found}
            ids = words.encode(source.captions(found, seed, step))
            yield {**notes, "latent": latent, "ids": ids}
            step += 1

    return Task(
        init=init,
        frozen={"vae": full(vae.params)},
        loss=loss,
        batches=batches,
        components=lambda params: params,
        configs=lambda params: stages.configs(net),
        sample=sampler(cfg, net, vae, words, source),
        rules=stages.rules(net),
        notes={"stages": {"t2i": config.to_dict(stage)}, "tokenizer": words.to_json()},
    )


def sampler(cfg: Any, net: stages.Config, vae: Component, words: Tokenizer, source: Source) -> Any:
    """Sheets of sixteen pictures from fixed captions of the training split."""
    ids = words.encode(source.examples(16))
    negative = np.repeat(words.encode([""]), len(ids), axis=0)
    decode = jax.jit(lambda params, z: codec.decode(params, vae.config, z))

    def sample(params: Params, frozen: Params, key: jax.Array) -> np.ndarray:
        each = keys.per_sample(key, len(ids))
        scales = guidance.make(cfg.sample.guidance)
        inputs = {**stages.blank(net, len(ids)), "ids": ids, "negative": negative}
        z = t2i.sample(params, net, inputs, each, scales, steps=cfg.sample.steps)[:, 0]
        return grid(to_uint8(decode(frozen["vae"], z)), columns=8)

    return sample
