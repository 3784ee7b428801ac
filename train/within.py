"""Clips made within the training step: the source renders on the device, and nothing is kept.

`data.within` asks for it. A batch then holds numbers of samples and their captions alone; no step
sees a sample twice, and no accelerator waits for a host that renders or reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from mv2_jax.config import VAEConfig
from mv2_jax.errors import InputError
from mv2_jax.text import Tokenizer
from mv2_jax.train import streamed
from mv2_jax.train import words as tokens
from mv2_jax.train.source import Source
from mv2_jax.train.task import Batch, Params

MOST = 2**31  # numbers of samples go round there
READS = ("within",)  # the `data` settings that stand in place of `count` and `shard`


def asked(data: Any, source: Source) -> bool:
    """Whether a phase's `data` settings ask for it.

    Raises:
        InputError: the source cannot, or the settings ask for pictures between the clips as well.
    """
    if not data.get("within"):
        return False
    if not source.traced:
        raise InputError(
            f"data.within: {type(source).__name__} reads on the host; only what is rendered "
            "(toybox, storybox) can be made within the step"
        )
    if data.get("image_every") or len(data.get("sizes", ())) > 1:
        raise InputError(
            "data.within: every step is to be alike, so data.image_every is 0 and data.sizes has "
            "one size at the most"
        )
    return True


def batches(
    source: Source, words: Tokenizer, cfg: Any, rows: int, seed: int, start: int
) -> Iterator[Batch]:
    """Batches from a phase's step `start` on: "number" [B] int32 of samples and "ids", and
    "decoded" [B] where `data.decoded` is set (see `streamed.batches`)."""
    share, step = float(cfg.data.get("decoded", 0.0)), start
    while True:
        numbers = (np.arange(step * cfg.batch, (step + 1) * cfg.batch) % MOST).astype(np.int32)
        said = source.captions(jax.device_get(source.notes(numbers)), seed, step)
        batch = {"number": numbers, "ids": tokens.encode(words, said, rows)}
        if share:
            shown = np.random.default_rng([seed, step, 1]).random() < share
            batch["decoded"] = np.full(cfg.batch, shown, np.float32)
        yield batch
        step += 1


def rendered(
    batch: Batch, source: Source, frames: int, size: tuple[int, int], vae: Params, cfg: VAEConfig
) -> Batch:
    """A batch of `batches` with its "latent" and the reference "image", within the step."""
    batch = dict(batch)
    pixels, _ = source.read(batch.pop("number"), frames, size)
    return streamed.with_latents({**batch, "pixels": pixels}, vae, cfg)
