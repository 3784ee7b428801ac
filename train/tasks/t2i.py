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
from mv2_jax.diffusion import guidance, keys, losses, process
from mv2_jax.errors import InputError
from mv2_jax.stages import idle as unheard
from mv2_jax.stages import latents, t2i
from mv2_jax.stages import stage as stages
from mv2_jax.train import answers, chosen, encoded, streamed, unread, within
from mv2_jax.train import source as sources
from mv2_jax.train import words as tokens
from mv2_jax.train.latents import Shards, at_once
from mv2_jax.train.media.turns import Turn
from mv2_jax.train.phase import remat
from mv2_jax.train.report import grid, to_uint8
from mv2_jax.train.source import Source
from mv2_jax.train.task import Batch, Component, Params, Task, chances, compute_dtype, require


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

    `train` names the trees that are trained, all by default; SDXL has "text_encoder_2" too.
    `data.sizes` are the sides of the pictures, taken in turns: the same spatial weights serve I2V
    at its smaller size.

    Raises:
        InputError: no autoencoder to begin from, a size that is no multiple of its factor, or a
            setting that changes nothing.
    """
    require(begin, "vae")
    task = PictureTask(cfg, begin, folder)
    use = "stream" if task.source.streams else "clips"
    unread.refuse(cfg, task.reads(), task.idle(), task.source, use)
    return task.task()


class PictureTask:
    """T2I as a task. Raises InputError as `make` says."""

    def __init__(self, cfg: Any, begin: Mapping[str, Component], folder: Path) -> None:
        self.cfg, self.begin, self.folder = cfg, begin, folder
        self.vae = begin["vae"]
        held = begin.get("text_encoder")
        self.source = sources.of(cfg)
        text = held.config if held else config.from_dict(cfg.model.text.to_dict())
        self.words = tokens.tokenizer(begin, self.source, text)
        if held:
            tokens.check(text, self.words)
        else:
            text = tokens.fit(text, self.words)
        configs = {"text_encoder": text}
        if "text_encoder_2" in begin:
            configs["text_encoder_2"] = begin["text_encoder_2"].config
        stage = config.from_dict(cfg.model.t2i.to_dict())
        factor, dtype = self.vae.config.factor, compute_dtype(cfg.precision)
        self.net = stages.build("t2i", stage, configs, factor, dtype, remat(cfg))
        self.trained = chosen.check(cfg.get("train", ()), self.net.trees) or self.net.trees
        self.kept = [name for name in self.net.trees if name not in self.trained]
        require(begin, *self.kept)
        self.sizes = [_sides(size) for size in cfg.data.get("sizes", ()) or (stage.size,)]
        for size in self.sizes:
            if size[0] % factor or size[1] % factor:
                said = size[0] if size[0] == size[1] else size
                raise InputError(f"data.sizes: {said} is not a multiple of {factor}")
        self.rows = tokens.rows_of(cfg.data, self.words)
        self.within = within.asked(cfg.data, self.source)
        self.shape = losses.of(cfg.loss.shape)
        if self.source.streams:
            self.source.fits(begin, self.turns(), self.rows, self.trained)
        self.null = jnp.asarray(self.words.encode([""])[0])
        self.decode = jax.jit(lambda params, z: latents.decode(params, self.vae.config, z))

    def reads(self) -> set[str]:
        """The settings that it reads."""
        kept = within.READS if self.within else ("count", "shard")
        data = ("sizes", "caption_rows", *(() if self.source.streams else kept))
        return {
            *(
                "train",
                "size",
                "network",
                "precision",
                "remat",
                "remat_policy",
                "model.t2i",
                "model.text",
            ),
            *("loss.shape", "sample.guidance", "sample.steps", "begin.vae"),
            *(f"begin.{name}" for name in self.net.trees),
            *(f"loss.{name}" for name in stages.drops(self.net)),
            *(f"data.{name}" for name in data),
        }

    def idle(self) -> dict[str, str]:
        """{setting: why} of those that change nothing as the stage is put together."""
        if "text_encoder" in self.begin:
            text = self.begin["text_encoder"].config
            unread.begun(self.cfg, "text", text, but=("vocab_size", "eos_token_id"))
        of_stage = {f"sample.{name}": why for name, why in unheard.numbers(self.net).items()}
        return {**of_stage, **unread.of_loss(self.shape, process.of(self.net.stage.schedule))}

    def init(self, key: jax.Array) -> Params:
        """What is trained: from `begin` where it is there, else fresh."""
        fresh = [name for name in self.trained if name not in self.begin]
        known = {n: full(self.begin[n].params) for n in self.trained if n in self.begin}

        def made(key: jax.Array) -> Params:
            whole = stages.init(self.net, key)
            return {name: whole[name] for name in fresh}

        return {**(jax.jit(made)(key) if fresh else {}), **known}

    def ready(self, frozen: Params, batch: Batch) -> Batch:
        """A batch as the stage's loss takes it."""
        if self.source.streams:
            batch = streamed.with_latents(batch, frozen["vae"], self.vae.config)
        if self.within:
            whole = (frozen["vae"], self.vae.config)
            batch = within.rendered(batch, self.source, 1, self.sizes[0], *whole)
        return {**batch, "latent": batch["latent"].astype(jnp.float32), "null_ids": self.null}

    def loss(self, params: Params, frozen: Params, batch: Batch, key: jax.Array):
        rates = chances(self.cfg.loss, self.net)
        return self._loss(params, frozen, batch, key, rates=rates, shape=self.shape)

    def error_at(self, params: Params, frozen: Params, batch: Batch, key: jax.Array, u: jax.Array):
        """The unweighted error at position u of the process."""
        return self._loss(params, frozen, batch, key, shape=losses.At(u))[0]

    def _loss(self, params: Params, frozen: Params, batch: Batch, key: jax.Array, **how: Any):
        whole = self.whole(params, frozen)
        return stages.loss(whole, self.net, self.ready(frozen, batch), key, **how)

    def whole(self, params: Params, frozen: Params) -> Params:
        """All of the network's trees, those in training and those that are not."""
        return {**{name: frozen[name] for name in self.kept}, **params}

    def turns(self) -> list[Turn]:
        """Of a source that streams: pictures of each size."""
        return [Turn((1,), size, self.cfg.batch, (n,)) for n, size in enumerate(self.sizes)]

    def batches(self, seed: int, start: int) -> Iterator[Batch]:
        """Pictures of each size in turn."""
        cfg, source, net = self.cfg, self.source, self.net
        if source.streams:
            yield from streamed.batches(source, self.turns(), net, self.words, cfg, seed, start)
            return
        if self.within:
            yield from within.batches(source, self.words, cfg, self.rows, seed, start)
            return
        root = self.folder.parent / "latents"
        sets = [stills(source, self.vae, size, cfg, root) for size in cfg.data.sizes]
        step = start
        while True:
            turn, which = divmod(step, len(sets))
            found = sets[which].take(source.pick(seed, turn, cfg.batch, cfg.data.count))
            latent = found.pop("latent")
            notes = {name: found[name] for name in net.inputs if name in found}
            ids = tokens.encode(self.words, source.captions(found, seed, step), self.rows)
            yield {**notes, "latent": latent, "ids": ids}
            step += 1

    def sample(self, params: Params, frozen: Params, key: jax.Array) -> np.ndarray:
        """Sheets of sixteen pictures from fixed captions of the training split."""
        ids = self.words.encode(self.source.examples(16))
        negative = np.repeat(self.words.encode([""]), len(ids), axis=0)
        each = keys.per_sample(key, len(ids))
        scales = guidance.make(self.cfg.sample.guidance)
        inputs = {**stages.blank(self.net, len(ids)), "ids": ids, "negative": negative}
        steps, whole = self.cfg.sample.steps, self.whole(params, frozen)
        z = t2i.sample(whole, self.net, inputs, each, scales, steps=steps)[:, 0]
        return grid(to_uint8(self.decode(frozen["vae"], z)), columns=8)

    def answer(self, params: Params, frozen: Params) -> np.ndarray:
        """What the network answers to fixed noise."""
        (prompt,) = self.source.examples(1)
        return answers.to_noise(self.whole(params, frozen), self.net, self.words, prompt)

    def task(self) -> Task:
        """The loop's view."""
        held = {name: full(self.begin[name].params) for name in self.kept}
        return Task(
            init=self.init,
            frozen={**held, "vae": full(self.vae.params)},
            loss=self.loss,
            error_at=self.error_at,
            batches=self.batches,
            held_out=sources.held_out(self),
            components=lambda params: params,
            configs=lambda params: {name: stages.configs(self.net)[name] for name in params},
            sample=self.sample,
            answer=self.answer,
            rules=stages.rules(self.net),
            notes={
                "stages": {"t2i": config.to_dict(self.net.stage)},
                "tokenizer": self.words.to_json(),
            },
        )


def _sides(size: Any) -> tuple[int, int]:
    """A side, or (height, width), as both."""
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
