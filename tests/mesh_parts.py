"""Cases of `test_meshes` beside the diffusion stages: autoencoder, encoders, interpolators, and
what trains them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from mesh_case import Case, Made, normal, of_shapes

from mv2_jax import shards
from mv2_jax.config import (
    EDSCConfig,
    EMAVFIConfig,
    GANVFIConfig,
    ImageProjectionConfig,
    RefinedRIFEConfig,
    to_dict,
)
from mv2_jax.config_vfi import MeanVFIConfig
from mv2_jax.diffusion import keys
from mv2_jax.models.clip_text import TextEncoder
from mv2_jax.models.clip_vision import VisionEncoder
from mv2_jax.models.image_projection import ImageProjection
from mv2_jax.models.vae import AutoencoderKL
from mv2_jax.stages import interpolators, latents, vfi, vfi_table
from mv2_jax.train.phase import phase
from mv2_jax.train.task import Component
from mv2_jax.train.tasks import vae as vae_task
from mv2_jax.train.tasks import vfi as vfi_task

VAE = dataclasses.replace(tiny.VAE, channels=(8, 8), mid_attention=True, patch_size=4)
FEATURES = dataclasses.replace(VAE, mid_attention=False)  # GAN training reads this one's
EMA = EMAVFIConfig(width=4, depths=(1, 1, 1, 1, 2))
EDSC = EDSCConfig(widths=(4, 8, 12))
RIFE40 = RefinedRIFEConfig(widths=(8, 8), scales=(2, 1), refine_width=4, pad_to=32)
GAN = GANVFIConfig(
    width=16, multipliers=(1,), codes=8, norm_groups=4, window=4, head_width=16, taps=3,
    head_widths=(8,), head_slope=0.1, patch_size=4, half_heads=False, time_width=8,
)  # fmt: skip
INTERPOLATORS = {
    "ema": EMA,
    "edsc": EDSC,
    "gan": dataclasses.replace(GAN, light=RIFE40),
    "mean": MeanVFIConfig((RIFE40, EDSC)),
}


def of_vae(case: Case) -> Made:
    """Both ways."""
    pixels = np.random.default_rng(2).uniform(-1, 1, (case.batch, case.frames, *case.pixels, 3))
    pixels = pixels.astype(np.float32)

    def run(params: Any, pixels: Any) -> Any:
        z = latents.encode(params, VAE, pixels)
        return z, latents.decode(params, VAE, z)

    return run, of_shapes(AutoencoderKL(VAE).init, pixels[0, :1])["params"], (pixels,)


def of_encoders(case: Case) -> Made:
    """CLIP's text and image encoders with their projections, and both kinds of image tokens."""
    ids = np.random.default_rng(3).integers(3, tiny.TEXT.vocab_size, (case.batch, 9))
    ids, pixels = ids.astype(np.int32), normal(4, case.batch, 16, 16, 3)
    text = TextEncoder(dataclasses.replace(tiny.TEXT, projection=6))
    vision = VisionEncoder(dataclasses.replace(tiny.VISION, projection=8))
    tokens = ImageProjection(tiny.PROJECTION)
    linear = ImageProjection(ImageProjectionConfig("linear", 8, out_width=8, tokens=3))

    def shapes(key: Any) -> Any:
        seen = vision.init_with_output(key, pixels)
        return {
            "text": text.init(key, ids)["params"],
            "vision": seen[1]["params"],
            "tokens": tokens.init(key, seen[0].hidden_states[-2])["params"],
            "linear": linear.init(key, seen[0].image_embeds)["params"],
        }

    def one(params: Any, ids: Any, pixels: Any) -> Any:
        seen = vision.apply({"params": params["vision"]}, pixels)
        said = text.apply({"params": params["text"]}, ids)
        both = (
            tokens.apply({"params": params["tokens"]}, seen.hidden_states[-2]),
            linear.apply({"params": params["linear"]}, seen.image_embeds),
        )
        return said.last, said.projected, *both

    return functools.partial(shards.over_samples, one), of_shapes(shapes), (ids, pixels)


def moving(shape: tuple[int, ...]) -> np.ndarray:
    """Clips [B, T, H, W, 3]. Smooth: between frames of noise, rounding alone moves what is found
    by 8e-5."""
    b, t, y, x, c = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return np.sin(b + 0.3 * x + 0.2 * y + 0.4 * t + c).astype(np.float32)


def of_interpolator(case: Case) -> Made:
    """A clip filled, and with more rows than one so many views of its pairs."""
    if case.kind == "vfi":
        params, cfg = vfi.shipped()
    else:
        cfg = INTERPOLATORS[case.kind]
        params = interpolator(cfg)
    frames = moving((case.batch, case.frames, 24 + case.plane[0], 40, 3))

    def run(params: Any, frames: Any) -> Any:
        if case.rows == 1:
            return interpolators.interpolate(params, cfg, frames, 3)
        pairs = (x.reshape(-1, *x.shape[2:]) for x in (frames[:, :-1], frames[:, 1:]))
        first, second = pairs
        times = jnp.broadcast_to(jnp.asarray([[0.3, 0.8]]), (len(first), 2))
        return interpolators.between(params, cfg, first, second, times, views=case.rows)

    return run, params, (frames,)


def interpolator(cfg: Any) -> Any:
    """Random parameters of an interpolator, its members' and its light model's."""
    if isinstance(cfg, MeanVFIConfig):
        return {str(k): interpolator(member) for k, member in enumerate(cfg.members)}
    image, time = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 1))
    network = vfi_table.of(cfg).part("network")(cfg)
    if isinstance(cfg, GANVFIConfig):
        own = of_shapes(network.init, image, image, image, time[0])["params"]
        return {"light": interpolator(cfg.light), "gan": own}
    return of_shapes(network.init, image, image, time)["params"]


def of_task(task: Any, batch: dict[str, Any]) -> Made:
    """A training task's loss, what it reports, and the gradient of every parameter."""
    params, frozen = of_shapes(task.init), task.frozen

    def run(params: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            return task.loss(params, frozen, batch, keys.seed(3))

        return jax.value_and_grad(loss, has_aux=True)(params)

    return run, params, (batch,)


def of_vae_loss(case: Case) -> Made:
    """The autoencoder's, against a critic."""
    weights = {"l1": 1.0, "l2": 1.0, "edge": 1.0, "edge_scales": 2, "kl": 0.1, "critic": 0.5}
    cfg = phase(
        "vae",
        model={"vae": to_dict(VAE)},
        data={"views": ("32",)},
        loss={**weights, "critic_from": 0},
        critic={"width": 8, "layers": 1},
    )
    count = case.batch * min(case.frames, 2)
    pixels = np.random.default_rng(2).uniform(-1, 1, (count, *case.pixels, 3)).astype(np.float32)
    batch = {"image": pixels, "critic": np.ones(count, np.float32)}
    return of_task(vae_task.make(cfg, {}, None), batch)


def of_gan_loss(case: Case) -> Made:
    """The GAN interpolator's: features of an autoencoder, codes, a critic."""
    cfg = phase(
        "vfi",
        model={"vfi": to_dict(GAN)},
        data={"count": 8, "shard": 8, "size": 48, "side": 32, "gap": (0.1, 0.2), "among": 1},
        loss={"features": 0.2, "codebook": 1.0, "commitment": 0.25, "critic": 0.5},
        critic={"width": 8, "layers": 1},
    )
    features = of_shapes(AutoencoderKL(FEATURES).init, jnp.zeros((1, 32, 32, 3)))["params"]
    task = vfi_task.make(cfg, {"vae": Component(features, FEATURES)}, Path())
    count = case.batch * min(case.frames, 2)
    clips = np.round((moving((count, 4, 32, 32, 3)) + 1) * 127.5).astype(np.uint8)
    batch = dict(zip(("first", "second", "target", "guess"), clips.swapaxes(0, 1)))
    batch["time"] = np.linspace(0.2, 0.8, count, dtype=np.float32)
    batch["critic"] = np.ones(count, np.float32)
    return of_task(task, batch)
