"""The networks that benchmarks/parity.py compares, at their public sizes, by name.

Each entry of `CASES` takes `small` and gives a `case.Case`; one of `ORIGINALS` takes a checkout of
AnimateDiff besides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from animatediff import VERSIONS, original
from case import Case
from encoders import autoencoder, encoder
from image_adapter import adapter
from unets import picture, tile, video

from mv2_jax.config import TextConfig, UNetConfig, VisionConfig

SDXL = UNetConfig(
    channels=(320, 640, 1280),
    transformers=(0, 2, 10),
    mid_transformers=10,
    heads=(5, 10, 20),
    context_width=2048,
    linear_projection=True,
    pooled_width=1280,
)
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
