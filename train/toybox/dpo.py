"""Training on preferences: Diffusion-DPO, or plain fine-tuning on the winners, for T2I and I2V.

`stage` is "t2i" (its spatial weights) or "i2v" (the trees that `train` names). `loss.kind` is "dpo"
or "winners": the latter sees the better half of the same pairs with the plain loss, so that what
DPO gains over it is due to the worse halves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import bundle, config
from mv2_jax import params as trees
from mv2_jax.diffusion import guidance, losses, process
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion.losses import LossConfig, diffusion_loss
from mv2_jax.errors import InputError
from mv2_jax.lookup import one_of
from mv2_jax.stages import i2v, t2i
from mv2_jax.stages import idle as unheard
from mv2_jax.stages import latents as codec
from mv2_jax.stages import stage as stages
from mv2_jax.toybox import evaluate
from mv2_jax.train import answers, chosen, source, unread
from mv2_jax.train import words as tokens
from mv2_jax.train.latents import Shards, position
from mv2_jax.train.phase import remat
from mv2_jax.train.preference import dpo_loss, paired
from mv2_jax.train.task import Batch, Component, Params, Task, chances, compute_dtype, require
from mv2_jax.train.toybox import pairs, worlds
from mv2_jax.train.video import VideoTask, guided

STAGES, KINDS = ("t2i", "i2v"), ("dpo", "winners")
NEEDED = {
    "t2i": ("vae", "text_encoder", "spatial"),
    "i2v": tuple(name for name in bundle.NEEDED if name != "motion_v2v"),
}


def make(cfg: Any, begin: Mapping[str, Component], folder: Path) -> Task:
    """The task, over everything that its stage is made of.

    Raises:
        InputError: an unknown stage, kind of loss or tree, a component that is missing, numbers
            of pairs that do not go together, or a setting that changes nothing.
    """
    for word, known, what in ((cfg.stage, STAGES, "stage"), (cfg.loss.kind, KINDS, "loss.kind")):
        one_of(word, known, what)
    chunk, shard, candidates = cfg.data.chunk, cfg.data.shard, cfg.data.candidates
    if chunk < 1 or shard % min(chunk, shard):
        raise InputError(f"data.chunk: {chunk} at a time do not divide a shard of {shard} prompts")
    if candidates < 2:
        raise InputError(f"data.candidates: a pair takes two at least, not {candidates}")
    require(begin, *NEEDED[cfg.stage])
    task = (Pictures if cfg.stage == "t2i" else Clips)(cfg, begin, folder)
    assert task.jury and task.motions is not None  # both are checked before anything is made
    unread.refuse(cfg, task.reads(), task.idle(), source.of(cfg))
    return task.task()


class Preferences(ABC):
    """What is alike whatever the stage (`OfPictures`, `OfClips`) and wherever pairs come from
    (`Judged`; votes are `tasks.votes`). The stage sets `net`, `words` and `base`, its network's
    trees before training."""

    net: Any
    words: Any
    base: Params
    stored: dict[str, str] = {}  # noqa: RUF012 - what trees are called in a folder, if otherwise

    def __init__(self, cfg: Any, begin: Mapping[str, Component], folder: Path) -> None:
        self.cfg, self.begin, self.folder = cfg, begin, folder
        self.shape = losses.of(cfg.loss.shape)
        if cfg.loss.kind != "winners" and not isinstance(self.shape, LossConfig):
            raise InputError("loss.shape: DPO takes a LossConfig's; another loss is for 'winners'")
        self.vae = trees.cast(begin["vae"].params, np.float32)
        self.decode = jax.jit(partial(codec.decode, cfg=begin["vae"].config))

    def reads(self) -> set[str]:
        """The settings that it reads."""
        loss = ("kind", "shape", *stages.drops(self.net))
        loss += ("beta",) if self.cfg.loss.kind == "dpo" else ()
        begin = ("vae", *(self.stored.get(name, name) for name in self.net.trees))
        return {
            *("stage", "train", "size", "frames", "network", "precision", "remat", "remat_policy"),
            f"model.{self.cfg.stage}",
            *(f"begin.{name}" for name in begin),
            *(f"loss.{name}" for name in loss),
            "data.margin",
        }

    def idle(self) -> dict[str, str]:
        """{setting: why} of those that change nothing as the stage is put together."""
        of_loss = unread.of_loss(self.shape, process.of(self.net.stage.schedule))
        if self.cfg.loss.kind != "winners":
            of_loss["loss.shape.noise_offset"] = "DPO noises both videos of a pair with plain noise"
        return of_loss

    @abstractmethod
    def shards(self) -> Shards:
        """All pairs, made when first needed; both kinds of loss read the same ones: "better" and
        "worse" latents, "margin", and what else the network is given."""

    @abstractmethod
    def batches(self, seed: int, start: int) -> Iterator[Batch]:
        """Pairs with the "ids" of their prompts."""

    def init(self, key: jax.Array) -> Params:
        """What is trained."""
        return {name: self.base[name] for name in chosen.names(self.cfg.train)}

    def loss(self, params: Params, frozen: Params, batch: Batch, key: jax.Array):
        keys = named.per_sample(key, batch["better"].shape[0])
        whole = {**frozen, **params}
        better, worse = (self.clips(batch[name]) for name in ("better", "worse"))
        given = (x for x in batch if x not in ("better", "worse", "margin", "image_worse"))
        inputs = trees.cast({name: batch[name] for name in given}, jnp.float32)
        inputs |= {"latent": better, "negative": jnp.asarray(self.words.encode([""]))}
        schedule, rates = self.net.stage.schedule, chances(self.cfg.loss, self.net)

        def model(tree: Params, rows: int) -> Any:
            """`f(x, t)` over `rows` times the batch's samples, under the batch's conditions."""
            # Guidance needs what the network answers without them, which must not drift.
            first = stages.drop(tree, self.net, inputs, keys, rates)
            conditioning = jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), first)
            if rows == 2 and "image_worse" in batch:  # the two began from pictures of their own
                image = jnp.asarray(batch["image_worse"], jnp.float32)
                others = {**inputs, "image": image, "latent": worse}
                second = stages.drop(tree, self.net, others, keys, rates)
                conditioning = jax.tree.map(paired, first, second)
            return partial(stages.predict_one, tree, self.net, conditioning=conditioning)

        if self.cfg.loss.kind == "winners":
            return diffusion_loss(model(whole, 1), better, keys, schedule, self.shape)
        models = (model(tree, 2) for tree in (whole, frozen))
        return dpo_loss(*models, better, worse, keys, schedule, self.cfg.loss.beta, self.shape)

    @staticmethod
    def clips(latents: jax.Array) -> jax.Array:
        """Stored latents [B, (T,) h, w, C] in fp32, with their frames."""
        latents = latents.astype(jnp.float32)
        return latents[:, None] if latents.ndim == 4 else latents

    def components(self, params: Params) -> dict[str, Params]:
        return {self.stored.get(name, name): tree for name, tree in params.items()}

    def answer(self, params: Params, frozen: Params) -> np.ndarray:
        """What the network answers to fixed noise."""
        whole = {**frozen, **params}
        (prompt,) = source.of(self.cfg).examples(1)
        return answers.to_noise(whole, self.net, self.words, prompt)

    def task(self) -> Task:
        chosen.check(self.cfg.train, self.base)
        configs = {name: part.config for name, part in self.begin.items()}
        return Task(
            init=self.init,
            frozen=self.base,
            loss=self.loss,
            batches=self.batches,
            components=self.components,
            configs=lambda params: {name: configs[name] for name in self.components(params)},
            answer=self.answer,
            rules=stages.rules(self.net),
            notes={"stages": {self.cfg.stage: config.to_dict(self.net.stage)}},
        )


class Judged(Preferences):
    """Pairs of the stage's own candidates, ranked by a judge."""

    @cached_property
    def motions(self) -> dict[str, float]:
        """How much oftener some motions are drawn."""
        return worlds.motions_of(self.cfg.data)

    @cached_property
    def jury(self) -> evaluate.Jury:
        """The judge that ranks candidates."""
        return evaluate.load(self.cfg.data.judge) if self.cfg.data.judge else evaluate.load()

    @abstractmethod
    def candidates(self, numbers: np.ndarray, words: np.ndarray) -> dict[str, np.ndarray]:
        """What a batch needs of the prompts with these numbers: "better" and "worse" latents."""

    def reads(self) -> set[str]:
        pictures = self.cfg.stage == "t2i"
        sample = ("guidance", "steps") if pictures else ("guidance", "image_guidance", "steps")
        data = ("count", "shard", "chunk", "candidates", "motions", "judge")
        own = {*(f"sample.{name}" for name in sample), *(f"data.{name}" for name in data)}
        return super().reads() | own

    def idle(self) -> dict[str, str]:
        of_stage = {f"sample.{name}": why for name, why in unheard.numbers(self.net).items()}
        return of_stage | super().idle()

    def shards(self) -> Shards:
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


class OfPictures(Preferences):
    """T2I: the spatial weights, over pictures."""

    def __init__(self, cfg: Any, begin: Mapping[str, Component], folder: Path) -> None:
        super().__init__(cfg, begin, folder)
        text, factor = begin["text_encoder"].config, begin["vae"].config.factor
        stage = config.from_dict(cfg.model.t2i.to_dict())
        dtype = compute_dtype(cfg.precision)
        configs = {"text_encoder": text}
        self.net = stages.build("t2i", stage, configs, factor, dtype, remat(cfg))
        self.words = tokens.tokenizer(begin, source.of(cfg), text)
        self.base = {name: trees.cast(begin[name].params, np.float32) for name in self.net.trees}


class Pictures(Judged, OfPictures):
    """T2I, over pictures of its own."""

    def candidates(self, numbers: np.ndarray, words: np.ndarray) -> dict[str, np.ndarray]:
        ids = self.words.encode(pairs.prompts(words))
        nothing = np.repeat(self.words.encode([""]), len(ids), axis=0)
        scales, steps = guidance.make(self.cfg.sample.guidance), self.cfg.sample.steps
        inputs = {"ids": ids, "negative": nothing}

        def one(number: int) -> tuple[np.ndarray, Any]:
            keys = pairs.keys(self.cfg.seed, numbers, number)
            z = t2i.sample(self.base, self.net, inputs, keys, scales, steps=steps)[:, 0]
            return z, self.decode(self.vae, latents=z)[:, None]

        return pairs.rank(self.jury, words, self.cfg.data.candidates, one)


class OfClips(Preferences):
    """I2V: some of its trees, over clips."""

    def __init__(self, cfg: Any, begin: Mapping[str, Component], folder: Path) -> None:
        super().__init__(cfg, begin, folder)
        whole = VideoTask("i2v", cfg, begin, folder)
        self.net, self.words = whole.net, whole.words
        self.stored = {name: whole._stored(name) for name in self.net.trees}
        self.base = {
            name: trees.cast(begin[stored].params, np.float32)
            for name, stored in self.stored.items()
        }
        self.encode = whole.encode


class Clips(Judged, OfClips):
    """I2V, over clips of its own from one reference picture a prompt, a true render."""

    def candidates(self, numbers: np.ndarray, words: np.ndarray) -> dict[str, np.ndarray]:
        size, sample = self.net.stage.size, self.cfg.sample
        image = worlds.first_frames(worlds.numbered(self.cfg.seed, numbers, self.motions), size)
        ids = self.words.encode(pairs.prompts(words))
        nothing = np.repeat(self.words.encode([""]), len(ids), axis=0)
        reference = self.encode(self.vae, image)
        inputs = {"ids": ids, "negative": nothing, "image": image}
        scales = guided(sample)

        def one(number: int) -> tuple[np.ndarray, Any]:
            keys = pairs.keys(self.cfg.seed, numbers, number)
            given = (self.base, self.net, inputs, reference)
            z = i2v.sample(*given, keys, scales, noise_prior=1.0, steps=sample.steps)
            return z, self.decode(self.vae, latents=z)

        found = pairs.rank(self.jury, words, self.cfg.data.candidates, one)
        found["image"] = np.asarray(image, np.float16)
        if "reference" in self.net.inputs:  # a SparseCtrl is shown what the candidates were made of
            found["reference"] = np.asarray(reference, np.float16)
        return found
