"""Training the GAN interpolator: L1, features, vector quantisation and a critic.

MagicVideo-V2 (arXiv 2401.04468) trains its interpolator as a GAN; the losses are VQ-FIGAN's
(LDMVFI, arXiv 2303.09508, after VQGAN, arXiv 2012.09841): L1 and features' distance, codebook and
commitment, and from step `loss.critic_from` on a hinge critic whose pull is balanced against the
others'; one optimiser serves both sides.

Two frames, the one between them and the light model's guess make a sample; see `train.triplets`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import config, shards
from mv2_jax import params as trees
from mv2_jax.diffusion import keys
from mv2_jax.errors import InputError
from mv2_jax.models.discriminator import PatchCritic
from mv2_jax.models.gan_vfi import GANVFI
from mv2_jax.models.vq import Quantised, perplexity
from mv2_jax.stages import vfi
from mv2_jax.train import adversary, features, source, triplets, unread
from mv2_jax.train.latents import Shards
from mv2_jax.train.report import grid, to_uint8
from mv2_jax.train.task import Batch, Component, Metrics, Params, Task, compute_dtype, require
from mv2_jax.train.tasks.vae import psnr

NAME = "vfi_gan"
READS = {
    *("precision", "begin.vae", f"begin.{NAME}", "model.vfi", "critic.width", "critic.layers"),
    *("data.count", "data.shard", "data.side", "data.among"),
    *(f"loss.{name}" for name in ("features", "codebook", "commitment", "critic", "critic_from")),
}
SHOWN = 6  # samples on a sheet


def make(cfg: Any, begin: Mapping[str, Component], folder: Path) -> Task:
    """The task, with `begin["vae"]`'s features; it goes on from `begin["vfi_gan"]` where that is.

    Raises:
        InputError: no autoencoder, no videos, a `data.side` that does not fit the networks, or a
            `data.gap` that leaves no frame between; a setting that changes nothing.
    """
    require(begin, "vae")
    task = VFITask(cfg, begin, folder)
    if task.held:
        unread.begun(cfg, "vfi", task.held.config)
    unread.refuse(cfg, READS, source=task.source, use="triplets")
    return task.task()


class VFITask:
    """The interpolator as a task: data, losses, sheets.

    Raises:
        InputError: a side or a gap that does not fit, or no videos under `data.root`.
    """

    def __init__(self, cfg: Any, begin: Mapping[str, Component], folder: Path) -> None:
        self.cfg, self.folder, self.held = cfg, folder, begin.get(NAME)
        stored = self.held.config if self.held else None
        self.net = stored or config.from_dict(cfg.model.vfi.to_dict())
        self.vae = begin["vae"]
        self.model = GANVFI(self.net, compute_dtype(cfg.precision))
        self.critic = PatchCritic(cfg.critic.width, cfg.critic.layers, compute_dtype(cfg.precision))
        side = cfg.data.side
        for what, unit in (("network", self.net.pad_to), ("autoencoder", self.vae.config.factor)):
            if side <= 0 or side % unit:
                raise InputError(f"data.side: {side} is not a multiple of the {what}'s {unit}")
        if "size" in cfg.data and cfg.data.size < side:
            raise InputError(f"data.size: frames of {cfg.data.size} hold no crop of {side}")
        if cfg.data.among < 1:
            raise InputError(f"data.among: of {cfg.data.among} draws none can be kept; 1 keeps all")
        if "gap" in cfg.data:
            _check_gap(tuple(cfg.data.gap), "root" in cfg.data)
        self.source = source.of(cfg, "videos" if "root" in cfg.data else "toybox")
        self.light_params, self.light_cfg = vfi.shipped()
        if self.light_cfg != self.net.light:
            raise InputError("model.vfi.light: training uses the RIFE that ships with the package")

    def init(self, key: jax.Array) -> Params:
        one, two = keys.split(key)
        image = jnp.zeros((1, self.net.pad_to, self.net.pad_to, 3))
        made = jax.jit(self.model.init)(one, image, image, image, jnp.zeros((1,)))["params"]
        critic = jax.jit(self.critic.init)(two, image)["params"]
        return {"gan": self.held.params["gan"] if self.held else made, "critic": critic}

    def parts(self, params: Params) -> dict[str, Params]:
        """The interpolator as `stages.vfi_gan` takes it: the light model's weights beside its own.

        So the file that a finished phase leaves is all that `mv2 interpolate --vfi FILE` needs.
        """
        return {NAME: {"light": self.light_params, "gan": params["gan"]}}

    def generate(self, params: Params, batch: Batch) -> tuple[Any, ...]:
        """(first, second, target, guess, made, codes) of a batch; frames fp32 in [-1, 1]."""
        frames = [batch[name].astype(jnp.float32) / 127.5 - 1 for name in triplets.IMAGES]
        first, second, target, guess = frames
        results = ("rows", Quantised("rows", "mean", "mean", "rows"))
        given = (first, second, guess, batch["time"])

        def run(params: Params, *given: jax.Array) -> Any:
            return self.model.apply({"params": params}, *given)

        made, codes = shards.over_samples(run, params, *given, results=results, gathered=False)
        return first, second, target, guess, made, codes

    def loss(self, params: Params, frozen: Params, batch: Batch, key: jax.Array):
        del key
        weights = self.cfg.loss
        _, _, target, guess, made, codes = self.generate(params["gan"], batch)

        judged = partial(adversary.judge, self.critic)

        def quality(x: jax.Array) -> jax.Array:
            far = features.distance(frozen["vae"], self.vae.config, x, target)
            return jnp.mean(jnp.abs(x - target)) + weights.features * far

        sides = (judged, params["critic"], made, target, quality)
        fought, terms = adversary.versus(*sides, weights.critic, batch["critic"])
        codebook = codes.codebook + weights.commitment * codes.commitment
        metrics: Metrics = {
            **terms,
            "loss_codes": codebook,
            "l1": jnp.mean(jnp.abs(made - target)),
            "codes_used": perplexity(codes.index, self.net.codes),
            "psnr": psnr(target, made),
            "psnr_light": psnr(target, guess),
            "sharpness": sharpness(made, target),
            "sharpness_light": sharpness(guess, target),
        }
        return fought + weights.codebook * codebook, metrics

    def shards(self) -> Shards:
        """The samples, made when a step first needs them."""
        data = self.cfg.data
        facts = {
            "what": "triplets",
            "data": data.to_dict(),
            "videos": [],
            "light": trees.digest(self.light_params),
            **self.source.facts(),
        }
        light_params = jax.device_put(trees.cast(self.light_params, np.float32))

        def light(first: jax.Array, second: jax.Array, times: jax.Array) -> jax.Array:
            return vfi.between(light_params, self.light_cfg, first, second, times)

        def make(numbers: np.ndarray) -> triplets.Arrays:
            numbers = (numbers[:, None] * data.among + np.arange(data.among)).ravel()
            drawn = self.source.triplets(numbers)
            return triplets.hardest(triplets.with_guess(light, drawn), data.among)

        return Shards(self.folder.parent / "triplets", facts, make, data.count, data.shard)

    def batches(self, seed: int, start: int) -> Iterator[Batch]:
        """Samples, mirrored and transposed at random; "critic" is 1 once it takes part."""
        shards, count = self.shards(), self.cfg.batch
        step = start
        while True:
            found = shards.take(self.source.pick(seed, step, count, self.cfg.data.count))
            active = adversary.active(step, self.cfg.loss.critic_from, count)
            yield {**triplets.turned(found, seed, step), "critic": active}
            step += 1

    def sample(self, params: Params, frozen: Params, key: jax.Array) -> np.ndarray:
        """Six columns: both frames, the true one between, the light model's, and this network's."""
        del frozen, key
        batch = self.shards().take(np.arange(min(SHOWN, self.cfg.data.shard)))
        first, second, target, guess, made, _ = jax.jit(self.generate)(params["gan"], batch)
        rows = np.concatenate([np.asarray(x) for x in (first, second, target, guess, made)])
        return grid(to_uint8(rows), columns=len(first))

    def task(self) -> Task:
        """The loop's view."""
        return Task(
            init=self.init,
            frozen={"vae": trees.cast(self.vae.params, np.float32)},
            loss=self.loss,
            batches=self.batches,
            components=self.parts,
            configs=lambda params: {NAME: self.net},
            sample=self.sample,
        )


def _check_gap(gap: tuple[float, ...], videos: bool) -> None:
    """Refuses what are no (least, most) frames of videos, or shares of a toybox clip's length."""
    if len(gap) == 2 and (2 <= gap[0] <= gap[1] if videos else 0 < gap[0] <= gap[1] <= 1):
        return
    what = "frames, 2 or more, so that one is between" if videos else "shares of a clip, up to 1"
    raise InputError(f"data.gap: {gap} are not the least and the most {what}")


def sharpness(made: jax.Array, real: jax.Array) -> jax.Array:
    """How much neighbouring pixels differ, as a share of how much they do in the real pictures.

    1 is as sharp, less is softer. [B, H, W, 3] twice.
    """

    def edges(x: jax.Array) -> jax.Array:
        down, across = x[:, 1:] - x[:, :-1], x[:, :, 1:] - x[:, :, :-1]
        return jnp.mean(jnp.abs(down)) + jnp.mean(jnp.abs(across))

    return edges(made) / jnp.maximum(edges(real), 1e-6)
