"""Training I2V and V2V: motion, appearance encoder and ControlNet over given spatial weights.

Both stages learn from clips and, every few steps, from pictures as one-frame clips (MagicVideo-V2,
arXiv 2401.04468, section 2.2). The task modules of the two say what they begin from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import config
from mv2_jax import params as trees
from mv2_jax.diffusion import guidance, keys, losses, process
from mv2_jax.errors import InputError
from mv2_jax.stages import i2v, latents, v2v
from mv2_jax.stages import idle as unheard
from mv2_jax.stages import stage as stages
from mv2_jax.train import answers, chosen, encoded, streamed, unread, within
from mv2_jax.train import source as sources
from mv2_jax.train import words as tokens
from mv2_jax.train.latents import Shards, at_once
from mv2_jax.train.media.turns import Turn
from mv2_jax.train.phase import remat
from mv2_jax.train.placement import host
from mv2_jax.train.report import Moving, grid, to_uint8
from mv2_jax.train.task import Batch, Component, Params, Task, chances, compute_dtype, require

# What a recipe's `model` calls the configs of a stage's networks.
MODEL = {"image_encoder": "vision", "image_attn": "projection", "control": "control"}
FPS = 8.0  # of sheets whose source tells none
SCALES = ("image_scale", "control_scale")


def guided(sample: Any) -> guidance.Guidance:
    """The guidance of a recipe's `sample`; an `image_guidance` of None is the usual one."""
    image = sample.get("image_guidance")
    return guidance.make(sample.guidance, **({} if image is None else {"image": image}))


class _Configs(dict):
    """The configs of networks by name; one that is missing is to be begun from."""

    def __init__(self, begin: Mapping[str, Component], **known: Any) -> None:
        super().__init__(known)
        self._begin = begin

    def __missing__(self, name: str) -> NoReturn:
        require(self._begin, name)
        raise KeyError(name)


class VideoTask:
    """One of the two stages as a task. `stage` is "i2v" or "v2v".

    Raises:
        InputError: a tree to train that is none, or a size that is no multiple of the factor.
    """

    def __init__(self, stage: str, cfg: Any, begin: Mapping[str, Component], folder: Path) -> None:
        self.stage, self.cfg, self.begin, self.folder = stage, cfg, begin, folder
        self.vae, self.text = begin["vae"], begin["text_encoder"].config
        factor = self.vae.config.factor
        self.source = sources.of(cfg)
        self.words = tokens.tokenizer(begin, self.source, self.text)
        tokens.check(self.text, self.words)
        self.rows = tokens.rows_of(cfg.data, self.words)
        self.within = within.asked(cfg.data, self.source)
        self.null = jnp.asarray(self.words.encode([""])[0])
        configs = _Configs(begin, **{name: part.config for name, part in begin.items()})
        for name, key in MODEL.items():
            stored = begin[name].config if name in begin else None
            if stored or key in cfg.model:
                configs[name] = stored or config.from_dict(cfg.model[key].to_dict())
        own = config.from_dict(cfg.model[stage].to_dict())
        self.net = stages.build(
            stage, own, configs, factor, compute_dtype(cfg.precision), remat(cfg)
        )
        if "spatial" in self.net.trees:  # a UNet's; a backbone of one's own may have none
            require(begin, "spatial")
        self.trained = chosen.check(cfg.train, self.net.trees)
        self.size = self.net.stage.size
        if any(side % factor for side in self.size):
            raise InputError(f"model.{stage}.size: {self.size} are no multiples of {factor}")
        self.shape = losses.of(cfg.loss.shape)
        if self.source.streams:
            self.source.fits(begin, self.turns(), self.rows, self.trained)
        # Jitted once here: a function made anew at every call would compile at every call.
        self.encode = jax.jit(lambda params, x: latents.encode(params, self.vae.config, x))
        self.decode = jax.jit(lambda params, z: latents.decode(params, self.vae.config, z))

    def trees(self, key: jax.Array) -> Params:
        """Every tree of the network, fp32: from `begin` where it is there, else fresh.

        On the host: a mesh takes its shares from there, and no device need hold them all.
        """
        known = {name: self.given(name) for name in self.net.trees}
        held = {n: trees.cast(part.params, np.float32) for n, part in known.items() if part}
        if all(known.values()):
            return held
        spatial = {name: tree for name, tree in held.items() if name == "spatial"}
        with jax.default_device(host()):
            made = jax.tree.map(np.asarray, stages.init(self.net, key, spatial))
        return {**made, **held}

    def given(self, name: str) -> Component | None:
        """What a tree begins from, if anything: V2V's own, its motion modules, as I2V's."""
        options = (f"{name}_{self.stage}", f"{name}_i2v", name)
        return next((self.begin[option] for option in options if option in self.begin), None)

    def checked(self) -> VideoTask:
        """Itself, once its settings are seen to change something.

        Raises:
            InputError: names the first that does not.
        """
        use = "stream" if self.source.streams else "clips"
        for name, key in MODEL.items():
            if name in self.begin and name in self.net.trees:
                unread.begun(self.cfg, key, self.begin[name].config)
        unread.refuse(self.cfg, self.reads(), self.idle(), self.source, use)
        return self

    def reads(self) -> set[str]:
        """The settings that it reads."""
        net, streams = self.net, self.source.streams
        data = ("image_every", "image_batch", "decoded", "caption_rows")
        kept = within.READS if self.within else ("count", "shard")
        data += ("frames",) if streams else kept
        sample = ("guidance", "image_guidance", "steps")
        sample += ("strength",) if self.stage == "v2v" else ()
        weighed = {getattr(each, "weighed", "") for each in net.conditions}
        begin = {name for tree in net.trees for name in (tree, f"{tree}_i2v", self._stored(tree))}
        return {
            *(
                "train",
                "size",
                "frames",
                "network",
                "precision",
                "remat",
                "remat_policy",
                "loss.shape",
            ),
            f"model.{self.stage}",
            *(f"model.{key}" for name, key in MODEL.items() if name in net.trees),
            *(f"begin.{name}" for name in ("vae", *begin)),
            *(f"loss.{name}" for name in stages.drops(net)),
            *(f"loss.{name}" for name in SCALES if name.removesuffix("_scale") in weighed),
            *(f"sample.{name}" for name in sample),
            *(f"data.{name}" for name in data),
        }

    def idle(self) -> dict[str, str]:
        """{setting: why} of those that change nothing as the stage is put together."""
        of_stage = {f"sample.{name}": why for name, why in unheard.numbers(self.net).items()}
        return {**of_stage, **unread.of_loss(self.shape, process.of(self.net.stage.schedule))}

    def ready(self, frozen: Params, batch: Batch) -> Batch:
        """A batch as the stage's loss takes it."""
        if self.source.streams:
            batch = streamed.with_latents(batch, frozen["vae"], self.vae.config)
        if self.within:
            whole = (frozen["vae"], self.vae.config)
            batch = within.rendered(batch, self.source, self.net.stage.frames, self.size, *whole)
        return {**batch, "latent": batch["latent"].astype(jnp.float32), "null_ids": self.null}

    def loss(self, params: Params, frozen: Params, batch: Batch, key: jax.Array):
        rates = chances(self.cfg.loss, self.net)
        return self._loss(params, frozen, batch, key, rates=rates, shape=self.shape)

    def error_at(self, params: Params, frozen: Params, batch: Batch, key: jax.Array, u: jax.Array):
        """The unweighted error at position u of the process."""
        return self._loss(params, frozen, batch, key, shape=losses.At(u))[0]

    def _loss(self, params: Params, frozen: Params, batch: Batch, key: jax.Array, **how: Any):
        batch, settings = self.ready(frozen, batch), self.cfg.loss
        scales = {name: settings[name] for name in SCALES if name in settings}
        return stages.loss({**frozen, **params}, self.net, batch, key, scales=scales, **how)

    def shards(self) -> Shards:
        """The source's keyframes: "latent" [T, h, w, C] fp16, and its notes."""
        stage = self.net.stage
        return encoded.shards(
            self.source,
            self.vae,
            stage.frames,
            stage.size,
            root=self.folder.parent / "latents",
            data=self.cfg.data,
            chunk=at_once(4, 32),
            facts={"what": f"{stage.frames} keyframes", "sides": list(stage.size)},
        )

    def batches(self, seed: int, start: int) -> Iterator[Batch]:
        """Clips, and every `data.image_every` steps pictures as one-frame clips.

        The reference is the first frame, as the source has it or (a share `data.decoded` of the
        steps) as the autoencoder gives it back, which is how T2I's pictures look.
        """
        data, source, frames = self.cfg.data, self.source, self.net.stage.frames
        if source.streams:
            given = (source, self.turns(), self.net, self.words, self.cfg)
            yield from streamed.batches(*given, seed, start)
            return
        if self.within:
            yield from within.batches(source, self.words, self.cfg, self.rows, seed, start)
            return
        shards = self.shards()
        vae = jax.device_put(trees.cast(self.vae.params, np.float32))
        step, every = start, data.image_every
        while True:
            still = every and step % every == every - 1
            # Pictures walk through the clips in an order of their own, each kind at its own pace:
            # by the step itself, those that fall on the other's steps would be left out.
            stills = step // every if every else 0  # steps of pictures before this one
            if still:
                numbers = source.pick(seed + 1, stills, data.image_batch, data.count)
            else:
                numbers = source.pick(seed, step - stills, self.cfg.batch, data.count)
            found = shards.take(numbers)
            latent = found.pop("latent")[:, : 1 if still else frames]
            if np.random.default_rng([seed, step, 1]).random() < data.decoded:
                image = self.decode(vae, jnp.asarray(latent[:, 0], jnp.float32))
            else:
                image = source.clips(numbers, 1, self.size)[0][:, 0]
            ids = tokens.encode(self.words, source.captions(found, seed, step), self.rows)
            # What else the source notes of a sample, for conditions of one's own.
            notes = {name: found[name] for name in self.net.inputs if name in found}
            yield {**notes, "latent": latent, "image": image, "ids": ids}
            step += 1

    def turns(self) -> list[Turn]:
        """Of a source that streams: clips, and every `data.image_every` steps pictures."""
        data, most = self.cfg.data, self.net.stage.frames
        lengths = tuple(data.get("frames") or (most,))
        if min(lengths) < 2 or max(lengths) > most:
            raise InputError(f"data.frames: {lengths}: clips have 2 to {most} frames at this stage")
        every = data.get("image_every", 0)
        if every == 1:
            raise InputError("data.image_every is 1: no step would see clips")
        clips = Turn(lengths, self.size, self.cfg.batch, tuple(range(max(1, every - 1))))
        if not every:
            return [clips]
        return [clips, Turn((1,), self.size, data.image_batch, (every - 1,))]

    def components(self, params: Params) -> dict[str, Params]:
        """What was trained; the motion modules under the name of their stage."""
        return {self._stored(name): tree for name, tree in params.items()}

    def configs(self, params: Params) -> dict[str, Any]:
        known = stages.configs(self.net)
        if "spatial" in self.begin:
            known["spatial"] = self.begin["spatial"].config
        return {self._stored(name): known[name] for name in params}

    def _stored(self, name: str) -> str:
        return f"{name}_{self.stage}" if name in self.net.backbone.own else name

    def sample(self, params: Params, frozen: Params, key: jax.Array) -> Moving:
        """Six clips, a row each: the reference, then the frames (for V2V: of noised keyframes).
        Where they move they are two rows of three."""
        net, cfg = self.net, self.cfg.sample
        whole = {**frozen, **params}
        each = keys.per_sample(key, 6)
        ids = self.words.encode(self.source.examples(6))
        negative = np.repeat(self.words.encode([""]), len(ids), axis=0)
        truth = self.source.example_clips(key, 6, net.stage.frames, net.stage.size)
        image, z = truth[:, 0], self.encode(frozen["vae"], truth)
        inputs = {**stages.blank(net, len(ids)), "ids": ids, "negative": negative}
        inputs |= {"image": image, "reference": z[:, 0]}
        scales = guided(cfg)
        given = (whole, net, inputs)
        if self.stage == "i2v":
            out = i2v.sample(*given, z[:, 0], each, scales, noise_prior=1.0, steps=cfg.steps)
        else:
            more = {"strength": cfg.strength, "steps": cfg.steps}
            out = v2v.sample(*given, z, each, scales, **more)
        frames = self.decode(frozen["vae"], out)
        rows = to_uint8(jnp.concatenate([image[:, None], frames], axis=1))
        sheet = grid(rows.reshape(-1, *rows.shape[2:]), columns=rows.shape[1])
        moving = np.stack([grid(rows[:, n], columns=3) for n in range(1, rows.shape[1])])
        return Moving(sheet, moving, self.cfg.data.get("fps") or FPS)

    def answer(self, params: Params, frozen: Params) -> np.ndarray:
        """What the network answers to fixed noise."""
        (prompt,) = self.source.examples(1)
        return answers.to_noise({**frozen, **params}, self.net, self.words, prompt)

    def task(self) -> Task:
        """The loop's view; frozen trees and trained ones come from one initialisation."""
        whole = self.trees(keys.seed(self.cfg.seed))
        frozen = {name: tree for name, tree in whole.items() if name not in self.trained}
        frozen["vae"] = trees.cast(self.vae.params, np.float32)
        trained = {name: whole[name] for name in self.trained}
        return Task(
            init=lambda key: trained,
            frozen=frozen,
            loss=self.loss,
            error_at=self.error_at,
            batches=self.batches,
            held_out=sources.held_out(self),
            components=self.components,
            configs=self.configs,
            sample=self.sample,
            answer=self.answer,
            rules=stages.rules(self.net),
            notes={
                "stages": {self.stage: config.to_dict(self.net.stage)},
                "tokenizer": self.words.to_json(),
            },
        )
