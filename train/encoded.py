"""A source's clips as latents, made once and kept in shards (see `train.latents`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import config
from mv2_jax import params as trees
from mv2_jax.stages import latents
from mv2_jax.train.latents import Shards, of_encoder, on_every_device
from mv2_jax.train.source import Source
from mv2_jax.train.task import Component, Params


def shards(
    source: Source,
    vae: Component,
    frames: int | None,
    size: tuple[int, int],
    *,
    root: Path,
    data: Any,
    chunk: int,
    facts: Mapping[str, Any],
) -> Shards:
    """A source's samples as "latent" fp16, beside its notes of them.

    Args:
        vae: the autoencoder that makes latents.
        frames: of clips, whose latents are [T, h, w, C]; None: of pictures, [h, w, C].
        root: where sets of latents lie.
        data: the phase's `data` settings: `count` samples in shards of `shard`.
        chunk: how many a device makes at once.
        facts: what of the task the samples depend on; the source's own are added.
    """

    def encode(params: Params, given: Any) -> dict[str, jax.Array]:
        pixels, notes = source.read(given, frames or 1, size) if source.traced else given
        z = latents.encode(params, vae.config, pixels if frames else pixels[:, 0])
        return {"latent": z.astype(jnp.float16), **notes}

    def read(numbers: np.ndarray) -> Any:
        return numbers if source.traced else source.clips(numbers, frames or 1, size)

    whole = {
        "encoder": of_encoder(vae.params),
        "config": config.to_dict(vae.config),
        **facts,
        **source.facts(),
    }
    make = on_every_device(encode, trees.cast(vae.params, np.float32), chunk, read)
    return Shards(root, whole, make, data.count, data.shard)
