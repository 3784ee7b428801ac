"""Training on preferences: Diffusion-DPO, or plain fine-tuning on the winners, for T2I and I2V.

`stage` is "t2i" (its spatial weights) or "i2v" (the trees that `train` names); `lora.rank` 0 trains
all their weights, any other low-rank changes of the kernels that `lora.match` finds. `loss.kind` is
"dpo" or "winners": the latter sees the better half of the same pairs with the plain loss, so that
what DPO gains over it is due to the worse halves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import config
from mv2_jax import params as trees
from mv2_jax.config import nearest
from mv2_jax.diffusion import guidance
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion.losses import LossConfig, diffusion_loss
from mv2_jax.errors import InputError
from mv2_jax.stages import i2v, t2i, video
from mv2_jax.stages import latents as codec
from mv2_jax.toybox import evaluate
from mv2_jax.train import lora
from mv2_jax.train import source as sources
from mv2_jax.train import words as tokens
from mv2_jax.train.latents import Shards, position
from mv2_jax.train.preference import dpo_loss
from mv2_jax.train.task import Batch, Component, Params, Task, compute_dtype, require
from mv2_jax.train.toybox import pairs, worlds
from mv2_jax.train.video import TREES, VideoTask

STAGES, KINDS = ("t2i", "i2v"), ("dpo", "winners")
NEEDED = {"t2i": ("vae", "text_encoder", "spatial")}
NEEDED["i2v"] = (*NEEDED["t2i"], "motion_i2v", "image_encoder", "image_attn", "control")


def make(cfg: Any, begin: Mapping[str, Component], folder: Path) -> Task:
    """The task, over everything that its stage is made of.

    Raises:
        InputError: an unknown stage, kind of loss or tree, a component that is missing, or numbers
            of pairs that do not go together.
    """
    for word, known, what in ((cfg.stage, STAGES, "stage"), (cfg.loss.kind, KINDS, "loss.kind")):
        if word not in known:
            raise InputError(f"{what}: there is no {word!r}{nearest(word, known)}")
    chunk, shard, candidates = cfg.data.chunk, cfg.data.shard, cfg.data.candidates
    if chunk < 1 or shard % min(chunk, shard):
        raise InputError(f"data.chunk: {chunk} at a time do not divide a shard of {shard} prompts")
    if candidates < 2:
        raise InputError(f"data.candidates: a pair takes two at least, not {candidates}")
    require(begin, *NEEDED[cfg.stage])
    return (Pictures if cfg.stage == "t2i" else Clips)(cfg, begin, folder).task()


class Preferences(ABC):
    """What both stages do alike. A subclass sets `net`, `words`, `null` and `base`, the trees of
    its network before training, and says how to make candidates and what conditions them."""

    net: Any
    words: Any
    base: Params

    def __init__(self, cfg: Any, begin: Mapping[str, Component], folder: Path) -> None:
        self.cfg, self.begin, self.folder = cfg, begin, folder
        self.motions = worlds.motions_of(cfg.data)
        self.shape = LossConfig(**cfg.loss.shape.to_dict())
        self.jury = evaluate.load(cfg.data.judge) if cfg.data.judge else evaluate.load()
        self.vae = trees.cast(begin["vae"].params, np.float32)
        self.decode = jax.jit(partial(codec.decode, cfg=begin["vae"].config))

    @abstractmethod
    def candidates(self, numbers: np.ndarray, words: np.ndarray) -> dict[str, np.ndarray]:
        """What a batch needs of the prompts with these numbers: "better" and "worse" latents."""

    @abstractmethod
    def predict(self, whole: Params, batch: Batch, rows: int) -> Any:
        """`f(x, t)` over `rows` times the batch's samples, under the batch's conditions."""

    def init(self, key: jax.Array) -> Params:
        """What is trained: whole trees, or LoRA factors for them."""
        settings, trained = self.cfg.lora, {name: self.base[name] for name in self.cfg.train}
        if not settings.rank:
            return trained
        return {
            name: lora.init(named.fold(key, name), tree, settings.rank, settings.match)
            for name, tree in trained.items()
        }

    def merged(self, params: Params, base: Params) -> Params:
        """The trained trees, whole."""
        if not self.cfg.lora.rank:
            return dict(params)
        scale = self.cfg.lora.scale
        return {name: lora.merge(base[name], tree, scale) for name, tree in params.items()}

    def loss(self, params: Params, frozen: Params, batch: Batch, key: jax.Array):
        keys = named.per_sample(key, batch["better"].shape[0])
        batch = self.dropped(batch, keys)
        whole = {**frozen, **self.merged(params, frozen)}
        better, worse = (batch[name].astype(jnp.float32) for name in ("better", "worse"))
        schedule = self.net.stage.schedule
        if self.cfg.loss.kind == "winners":
            model = self.predict(whole, batch, 1)
            return diffusion_loss(model, better, keys, schedule, self.shape)
        models = (self.predict(tree, batch, 2) for tree in (whole, frozen))
        beta = self.cfg.loss.beta
        return dpo_loss(*models, better, worse, keys, schedule, beta, self.shape)

    def dropped(self, batch: Batch, keys: jax.Array) -> Batch:
        """The batch with some prompts emptied and, under "no_image" [B], some references not to be
        shown: guidance needs what the network answers without them, which must not drift."""
        drop = self.cfg.loss
        no_text = named.bernoulli(named.fold(keys, "drop_text"), drop.drop_text)
        no_image = named.bernoulli(named.fold(keys, "drop_image"), drop.drop_image)
        nothing = jnp.asarray(self.words.encode([""]))
        ids = jnp.where(no_text[:, None], nothing, batch["ids"])
        return {**batch, "ids": ids, "no_image": no_image}

    def shards(self) -> Shards:
        """All pairs, made when first needed; both kinds of loss read the same ones."""
        data, seed = self.cfg.data, self.cfg.seed

        def made(numbers: np.ndarray) -> dict[str, np.ndarray]:
            parts = []
            for few in numbers.reshape(-1, min(data.chunk, len(numbers))):
                words = pairs.labels(seed, few, self.motions)
                parts.append({**self.candidates(few, words), "label": words.astype(np.int8)})
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

        facts = {
            "what": f"preference pairs of {self.cfg.stage}",
            "weights": {name: trees.digest(self.base[name]) for name in sorted(self.base)},
            "vae": trees.digest(self.vae),
            "judge": trees.digest(self.jury.params),
            "stage": config.to_dict(self.net.stage),
            "sample": self.cfg.sample.to_dict(),
            "candidates": data.candidates,
            "seed": seed,
            **({"motions": dict(self.motions)} if self.motions else {}),
        }
        return Shards(self.folder.parent / "pairs", facts, made, data.count, data.shard)

    def told_apart(self, shards: Shards) -> np.ndarray:
        """Numbers of the pairs whose halves the judge tells apart by `data.margin` or more: of the
        others, which one is the better is mostly chance.

        Raises:
            InputError: there is none.
        """
        data = self.cfg.data
        margins = shards.take(np.arange(data.count))["margin"]
        told = np.flatnonzero(margins >= data.margin)
        if not len(told):
            raise InputError(
                f"data.margin: no pair of {data.count} differs by {data.margin:g}; the largest "
                f"difference is {margins.max():.3g}"
            )
        print(f"{len(told)} pairs of {data.count} differ by {data.margin:g} or more", flush=True)
        return told

    def batches(self, seed: int, start: int) -> Iterator[Batch]:
        shards, step = self.shards(), start
        told = self.told_apart(shards)
        while True:
            found = shards.take(told[position(seed, step, self.cfg.batch, len(told))])
            ids = self.words.encode(pairs.prompts(found.pop("label").astype(int)))
            yield {**found, "ids": ids}
            step += 1

    def components(self, params: Params) -> dict[str, Params]:
        named_as = {"motion": "motion_i2v"}
        merged = self.merged(params, self.base)
        return {named_as.get(name, name): tree for name, tree in merged.items()}

    def task(self) -> Task:
        for name in self.cfg.train:
            if name not in self.base:
                raise InputError(f"train: there is no tree {name!r}{nearest(name, self.base)}")
        configs = {name: part.config for name, part in self.begin.items()}
        return Task(
            init=self.init,
            frozen=self.base,
            loss=self.loss,
            batches=self.batches,
            components=self.components,
            configs=lambda params: {name: configs[name] for name in self.components(params)},
            notes={"stages": {self.cfg.stage: config.to_dict(self.net.stage)}},
        )


class Pictures(Preferences):
    """T2I: the spatial weights, over pictures."""

    def __init__(self, cfg: Any, begin: Mapping[str, Component], folder: Path) -> None:
        super().__init__(cfg, begin, folder)
        text, factor = begin["text_encoder"].config, begin["vae"].config.factor
        stage = config.from_dict(cfg.model.t2i.to_dict())
        dtype = compute_dtype(cfg.precision)
        self.net = t2i.Config(stage, text, factor, dtype, remat=cfg.remat)
        self.words = tokens.tokenizer(begin, sources.of(cfg), text)
        names = ("text_encoder", "spatial")
        self.base = {name: trees.cast(begin[name].params, np.float32) for name in names}

    def candidates(self, numbers: np.ndarray, words: np.ndarray) -> dict[str, np.ndarray]:
        ids = self.words.encode(pairs.prompts(words))
        nothing = np.repeat(self.words.encode([""]), len(ids), axis=0)
        scales, steps = guidance.make(self.cfg.sample.guidance), self.cfg.sample.steps

        def one(number: int) -> tuple[np.ndarray, Any]:
            keys = pairs.keys(self.cfg.seed, numbers, number)
            z = t2i.sample(self.base, self.net, ids, nothing, keys, scales, steps)
            return z, self.decode(self.vae, latents=z)[:, None]

        return pairs.rank(self.jury, words, self.cfg.data.candidates, one)

    def predict(self, whole: Params, batch: Batch, rows: int) -> Any:
        prompt = t2i.encode_text(whole, self.net, batch["ids"])
        prompt = jax.tree.map(lambda x: jnp.concatenate([x] * rows), prompt)
        return partial(t2i.predict, whole, self.net, prompt=prompt)


class Clips(Preferences):
    """I2V: some of its trees, over clips from one reference picture a prompt, a true render."""

    def __init__(self, cfg: Any, begin: Mapping[str, Component], folder: Path) -> None:
        super().__init__(cfg, begin, folder)
        whole = VideoTask("i2v", cfg, begin, folder)
        self.net, self.words = whole.net, whole.words
        own = {"motion": "motion_i2v"}
        self.base = {
            name: trees.cast(begin[own.get(name, name)].params, np.float32) for name in TREES
        }
        self.encode = whole.encode

    def candidates(self, numbers: np.ndarray, words: np.ndarray) -> dict[str, np.ndarray]:
        size, sample = self.net.stage.size, self.cfg.sample
        image = worlds.first_frames(worlds.numbered(self.cfg.seed, numbers, self.motions), size)
        ids = self.words.encode(pairs.prompts(words))
        nothing = np.repeat(self.words.encode([""]), len(ids), axis=0)
        reference, one_scale = self.encode(self.vae, image), jnp.float32(1.0)
        shown = reference if self.net.sparse else None
        given = video.condition(
            self.base, ids, nothing, image, one_scale, one_scale, shown, cfg=self.net
        )
        scales = guidance.make(sample.guidance, sample.image_guidance)

        def one(number: int) -> tuple[np.ndarray, Any]:
            keys = pairs.keys(self.cfg.seed, numbers, number)
            z = i2v.sample(self.base, self.net, given, reference, keys, scales, steps=sample.steps)
            return z, self.decode(self.vae, latents=z)

        found = pairs.rank(self.jury, words, self.cfg.data.candidates, one)
        found["image"] = np.asarray(image, np.float16)
        if shown is not None:
            found["reference"] = np.asarray(shown, np.float16)
        return found

    def predict(self, whole: Params, batch: Batch, rows: int) -> Any:
        image = batch["image"].astype(jnp.float32)
        tokens, none = video.encode_image(whole, self.net, image)
        no_image = batch["no_image"]
        # A SparseCtrl is shown the latent with which the candidates were made.
        sparse = self.net.sparse
        shown = batch["reference"].astype(jnp.float32) if sparse else image * 0.5 + 0.5
        given = video.Condition(
            text=video.encode_text(whole, self.net, batch["ids"]).text,
            tokens=jnp.where(no_image[:, None, None], none, tokens),
            image_scale=jnp.ones(len(image)),
            pixels=shown,
            control_scale=1.0 - no_image.astype(jnp.float32),
        )
        given = jax.tree.map(lambda x: jnp.concatenate([x] * rows), given)
        return partial(video.predict, whole, self.net, condition=given)
