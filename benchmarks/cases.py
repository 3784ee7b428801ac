"""The networks that benchmarks/parity.py compares, at their public sizes, by name.

Each entry of `CASES` takes `small` and gives a `Case`; one of `ORIGINALS` takes a checkout of
AnimateDiff besides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from animatediff import VERSIONS, original
from image_adapter import adapter

from mv2_jax.config import TextConfig, UNetConfig, VisionConfig
from mv2_jax.convert.beside.case import Case
from mv2_jax.convert.beside.cases import SDXL
from mv2_jax.convert.beside.encoders import autoencoder, encoder
from mv2_jax.convert.beside.unets import picture, tile, video

BIG_G = TextConfig(
    width=1280, layers=32, heads=20, mlp_width=5120, activation="gelu", projection=1280
)

CASES: dict[str, Callable[[bool], Case]] = {
    "sd15-64": functools.partial(picture, UNetConfig(), 64),
    "sd15-75": functools.partial(picture, UNetConfig(), 75),
    "sdxl": functools.partial(picture, SDXL, 32),
    "video-v2": functools.partial(video, True, "clip"),
    "video-v3": functools.partial(video, False, "clip"),
    "video-v2-frame": functools.partial(video, True, "frame"),
    "video-v3-frame": functools.partial(video, False, "frame"),
    "controlnet-tile": tile,
    "ip-adapter-plus": adapter,
    "clip-vit-h": functools.partial(encoder, VisionConfig()),
    "clip-bigg": functools.partial(encoder, BIG_G),
    "vae-600": autoencoder,
}

ORIGINALS: dict[str, Callable[[bool, Path], Case]] = {
    f"video-{version}-original": functools.partial(original, version) for version in VERSIONS
}
