"""Training the autoencoder: pictures to latents and back (Latent Diffusion, arXiv 2112.10752).

The loss is l1 * |d| + l2 * d^2 over the error d, plus the L1 distance of image gradients at
several scales (`edge`: it keeps edges sharp; there is no pretrained network to compare features
with), plus a small KL term. Every term is a mean over all its elements, the KL over latent
elements, so weights do not depend on sizes. With `critic` a patch critic joins from step
`loss.critic_from` on, balanced as in VQGAN (`train.adversary`): detail that latents do not hold is
then drawn, not averaged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import config, shards
from mv2_jax import params as trees
from mv2_jax.errors import InputError
from mv2_jax.lookup import nearest
from mv2_jax.models.discriminator import PatchCritic
from mv2_jax.models.vae import ENCODING, AutoencoderKL
from mv2_jax.train import adversary, source, unread
from mv2_jax.train.report import grid, to_uint8
from mv2_jax.train.task import Batch, Component, Metrics, Params, Task, compute_dtype

HALVES = ("encoder", "decoder")
WEIGHTS = ("l1", "l2", "edge", "edge_scales", "kl")  # of `loss`
_MEASURED = ("shift_factor", "scaling_factor", "decoder_channels")  # by training, or chosen apart
CRITIC = "critic"  # its weights, in training, beside the halves'; in a batch, if it takes part


def half(name: str) -> str:
    """Which of `HALVES` a top-level entry of the parameters belongs to."""
    return "encoder" if name in ENCODING else "decoder"


def kl_mean(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL divergence to the standard normal in nats, a mean over latent elements."""
    return 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


def edge_loss(error: jax.Array, scales: int) -> jax.Array:
    """Mean |gradient| of the error image [B, H, W, 3] along both axes, over halved scales."""
    total = jnp.zeros(())
    for scale in range(scales):
        if scale:
            b, h, w, c = error.shape
            error = error[:, : h // 2 * 2, : w // 2 * 2]
            error = error.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
        down = jnp.abs(error[:, 1:] - error[:, :-1]).mean()
        across = jnp.abs(error[:, :, 1:] - error[:, :, :-1]).mean()
        total += down + across
    return total / scales


def distances(
    made: jax.Array, real: jax.Array, weights: Mapping[str, Any]
) -> tuple[jax.Array, Metrics]:
    """How far made pictures are from the real ones [B, H, W, 3]: weighed together, and each."""
    error = made - real
    each = {
        "l1": jnp.mean(jnp.abs(error)),
        "l2": jnp.mean(jnp.square(error)),
        "edge": edge_loss(error, weights["edge_scales"]),
    }
    total = sum(weights[name] * value for name, value in each.items())
    return total, {f"loss_{name}": value for name, value in each.items()}


def psnr(x: jax.Array, y: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB, a mean over images [B, H, W, 3] in [-1, 1]."""
    mse = jnp.mean(jnp.square(jnp.clip(y, -1, 1) - x), axis=(1, 2, 3))
    return jnp.mean(10.0 * jnp.log10(4.0 / jnp.maximum(mse, 1e-10)))


def run(model: AutoencoderKL, method: str, params: Params, x: jax.Array) -> Any:
    """A method of the model, over the mesh's devices where there are several."""

    def one(params: Params, x: jax.Array) -> Any:
        return model.apply({"params": params}, x, method=method)

    return shards.over_samples(one, params, x)


def measure(model: AutoencoderKL, params: Params, images: Iterator[jax.Array]) -> Any:
    """The model's config with `shift_factor` and `scaling_factor` measured on `images`.

    They make the latents of these images zero in mean and one in variance, over all channels.
    """
    encode = jax.jit(partial(run, model, "encode"))
    values = np.concatenate([np.asarray(encode(params, x)[0]).ravel() for x in images])
    return dataclasses.replace(
        model.cfg,
        shift_factor=float(values.mean()),
        scaling_factor=float(1.0 / max(values.std(), 1e-6)),
    )


def _views(cfg: Any, factor: int) -> list[tuple[int, int]]:
    """(rendered size, crop or 0) of each entry of `data.views`: "256", or "256/128"."""
    views = []
    for text in cfg.data.views:
        size, _, crop = str(text).partition("/")
        if not size.isdigit() or (crop and not crop.isdigit()) or int(crop or 0) > int(size):
            raise InputError(f"data.views: {text!r} is neither 'SIZE' nor 'SIZE/CROP'")
        if int(crop or size) % factor:
            raise InputError(f"data.views: {crop or size} is not a multiple of {factor}")
        views.append((int(size), int(crop or 0)))
    return views


def fitting(old: Params, new: Params) -> Params:
    """`new`, with those leaves of `old` in place that have the same name and shape there."""
    flat, held = trees.flatten(new), trees.flatten(old)
    same = {n for n, leaf in held.items() if n in flat and leaf.shape == flat[n].shape}
    return trees.unflatten({**flat, **{name: held[name] for name in same}})


def _halves(cfg: Any, held: Component | None) -> tuple[str, ...]:
    """Which of `HALVES` are trained."""
    halves = tuple(cfg.train) if "train" in cfg else HALVES
    for name in halves:
        if name not in HALVES:
            raise InputError(f"train: an autoencoder has no {name!r}{nearest(name, HALVES)}")
    if not held and set(halves) != set(HALVES):
        raise InputError("train: one half alone is trained on from an autoencoder in `begin`")
    return halves


def _sizes(cfg: Any, held: Component | None, halves: tuple[str, ...]) -> Any:
    """The network's config: what training begins from, with the decoder that `cfg` asks for."""
    sizes = held.config if held else config.from_dict(cfg.model.vae.to_dict())
    if "decoder_channels" not in cfg:
        return sizes
    if "decoder" not in halves:
        raise InputError("decoder_channels: a new decoder must be trained; `train` leaves it out")
    try:
        return dataclasses.replace(sizes, decoder_channels=tuple(cfg.decoder_channels))
    except ValueError as error:
        raise InputError(str(error)) from None


class VAETask:
    """What `make` gives the loop, as methods; settings as in `configs/toybox/vae.py`."""

    def __init__(self, cfg: Any, held: Component | None) -> None:
        self.cfg, self.held = cfg, held
        self.source = source.of(cfg)
        self.halves = _halves(cfg, held)
        self.sizes = _sizes(cfg, held, self.halves)
        self.model = AutoencoderKL(self.sizes, compute_dtype(cfg.precision))
        self.views = _views(cfg, self.sizes.factor)
        self.largest = max(size for size, _ in self.views)
        tree = held.params if held else {}
        self.kept = {name: own for name, own in tree.items() if half(name) not in self.halves}
        dtype = self.model.dtype
        self.critic = PatchCritic(**cfg.critic, dtype=dtype) if CRITIC in cfg else None
        names = (*WEIGHTS, CRITIC, "critic_from") if self.critic else WEIGHTS
        self.weights = {name: cfg.loss[name] for name in names}
        self.through = jax.jit(partial(run, self.model, "__call__"))

    def reads(self) -> set[str]:
        """The settings that it reads."""
        own = {"train", "decoder_channels", "precision", "begin.vae", "model.vae", "data.views"}
        return {*own, CRITIC, *(f"loss.{name}" for name in self.weights)}

    def init(self, key: jax.Array) -> Params:
        """The trained halves, as training begins with them, and the critic."""
        held, side = self.held, 2 * self.sizes.factor
        image = jnp.zeros((1, side, side, 3))
        if held and self.sizes.decoder_levels == held.config.decoder_levels:
            own = held.params
        else:
            own = jax.jit(self.model.init)(key, image)["params"]
            own = fitting(held.params, own) if held else own
        made = {name: tree for name, tree in own.items() if name not in self.kept}
        if self.critic:
            made[CRITIC] = jax.jit(self.critic.init)(key, image)["params"]
        return made

    def loss(self, params: Params, frozen: Params, batch: Batch, key: jax.Array):
        params, x = {**frozen, **params}, batch["image"]
        judge = params.pop(CRITIC, None)
        mean, logvar = run(self.model, "encode", params, x)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        y = run(self.model, "decode", params, z)
        apart, metrics = distances(y, x, self.weights)
        metrics |= {
            "kl": kl_mean(mean, logvar),
            "psnr": psnr(x, y),
            "latent_std": jnp.std(mean),
        }
        if self.critic:
            judged = partial(adversary.judge, self.critic)
            sides = (judged, judge, y, x, lambda made: distances(made, x, self.weights)[0])
            apart, terms = adversary.versus(*sides, self.weights["critic"], batch[CRITIC])
            metrics |= terms
        return apart + self.weights["kl"] * metrics["kl"], metrics

    def batches(self, seed: int, start: int) -> Iterator[Batch]:
        """Pictures of one view a step, the views in turn."""
        step = start
        while True:
            size, crop = self.views[step % len(self.views)]
            image = self.source.pictures(seed, step, self.cfg.batch, size, crop)
            batch = {"image": image}
            if self.critic:
                since = self.weights["critic_from"]
                batch[CRITIC] = adversary.active(step, since, len(image))
            yield batch
            step += 1

    def sample(self, params: Params, frozen: Params, key: jax.Array) -> np.ndarray:
        """Eight pictures over what became of them."""
        x = self.source.pictures(self.cfg.seed + 2, 0, 8, self.largest)
        made = np.asarray(self.through({**frozen, **self._own(params)}, x))
        return grid(to_uint8(np.concatenate([x, made])), columns=8)

    def _own(self, params: Params) -> Params:
        """The autoencoder's part of what is trained."""
        return {name: tree for name, tree in params.items() if name != CRITIC}

    def components(self, params: Params) -> dict[str, Params]:
        return {"vae": {**self.kept, **self._own(params)}}

    def configs(self, params: Params) -> dict[str, Any]:
        """The sizes, with the latents' scale measured where the encoder was trained."""
        if "encoder" not in self.halves:
            return {"vae": self.sizes}
        tree, seed = self.components(params)["vae"], self.cfg.seed + 1
        images = (self.source.pictures(seed, i, 32, self.largest) for i in range(8))
        return {"vae": measure(self.model, tree, images)}

    def task(self) -> Task:
        return Task(
            init=self.init,
            frozen=self.kept,
            loss=self.loss,
            batches=self.batches,
            components=self.components,
            configs=self.configs,
            sample=self.sample,
        )


def make(cfg: Any, begin: Mapping[str, Component], folder: Path) -> Task:
    """The task; it goes on from `begin["vae"]` where there is one, with that one's config.

    `train` names the halves to train, "encoder" and "decoder"; the decoder alone may be trained on
    under networks that have learnt its encoder's latents, which stay what they are. With
    `decoder_channels` it gets levels of its own (`VAEConfig`), and what fits of the old one.

    Raises:
        InputError: a view that is not a size, or does not divide by the network's factor; an
            unknown half, or one half alone of an autoencoder that has not been trained;
            `decoder_channels` that do not fit, or of a decoder that is not trained; a setting that
            changes nothing.
    """
    del folder
    task = VAETask(cfg, begin.get("vae"))
    if task.held:
        unread.begun(cfg, "vae", task.held.config, but=_MEASURED)
    unread.refuse(cfg, task.reads(), source=task.source, use="pictures")
    return task.task()
