"""The networks that `mv2 bench cascade` times, by name, and SDXL's shape."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import bundle
from mv2_jax.config import TextConfig, UNetConfig
from mv2_jax.convert.beside.case import Case
from mv2_jax.convert.beside.encoders import autoencoder, encoder
from mv2_jax.convert.beside.unets import picture, video
from mv2_jax.infer import interpolators

SDXL = UNetConfig(
    channels=(320, 640, 1280),
    transformers=(0, 2, 10),
    mid_transformers=10,
    heads=(5, 10, 20),
    context_width=2048,
    linear_projection=True,
    pooled_width=1280,
)


def toybox(moving: bool, small: bool) -> Case:
    """The shipped T2I UNet's shape on its 32x32 latents, also with motion modules as AnimateDiff
    has them (the shipped ones are smaller than diffusers can make) on 8 frames of 32x32."""
    cfg = bundle.read().stages["t2i"].unet
    if not moving:
        return picture(cfg, 32, small)
    return video(False, "clip", small, cfg, 32)


def rife(small: bool) -> Case:
    """One frame between two of 1280x720 by RIFE 4.25 with its public weights, in 8 bits."""
    height, width = (64, 96) if small else (720, 1280)

    def given() -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        first = coarse.repeat(8, 0).repeat(8, 1)
        return {"first": first, "second": np.roll(first, 3, axis=1)}

    def make() -> Any:
        from mv2_jax.convert import rife_torch

        return rife_torch.load(*interpolators.load("rife"))

    def theirs(between: Any, given: dict[str, Any]) -> list[Any]:
        import torch

        pair = (given[name].numpy() for name in ("first", "second"))
        return [torch.from_numpy(made) for made in between(*pair, [0.5])]

    def ours(dtype: Any, params: Any, given: dict[str, Any]) -> list[jax.Array]:
        from mv2_jax.stages.interpolators import between

        pair = (given[name][None].astype(dtype) / 127.5 - 1 for name in ("first", "second"))
        made = between(params, interpolators.load("rife")[1], *pair, jnp.full((1, 1), 0.5))[0, 0]
        return [jnp.round(jnp.clip((made + 1) * 127.5, 0, 255)).astype(jnp.uint8)]

    def fill(folder: Path) -> Any:
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), interpolators.load("rife")[0])

    return Case(make, given, theirs, ours, fill, lambda module, folder: None, bound=2.1 / 255)


CASES: dict[str, Callable[[bool], Case]] = {
    "toybox": functools.partial(toybox, False),
    "toybox-video": functools.partial(toybox, True),
    "clip": functools.partial(encoder, dataclasses.replace(TextConfig(), projection=768)),
    "rife": rife,
    "vae": functools.partial(autoencoder, side=256),
    "unet": functools.partial(picture, UNetConfig(), 64),
    "video": lambda small: video(False, "clip", small, side=32),
    "sdxl": functools.partial(picture, SDXL, 32),
}
"""Names as in `bench_cascade.NETWORKS`; each takes whether the network is to be tiny."""
