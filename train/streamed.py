"""Training on files as they are read: samples become batches, and pixels latents within the step.

Nothing is kept, so every visit may show another part of a video and another cut. What is read and
decoded on a process's CPUs are its own devices' rows alone; the autoencoder runs where the step
does, and no gradient goes into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.config import VAEConfig
from mv2_jax.errors import InputError
from mv2_jax.stages import latents, stage
from mv2_jax.text import Tokenizer
from mv2_jax.train import processes
from mv2_jax.train import words as tokens
from mv2_jax.train.media.turns import Turn
from mv2_jax.train.placement import own_rows
from mv2_jax.train.source import Source
from mv2_jax.train.task import Batch, Params, Share

LOOKED_AT = 256  # captions, to tell whether they are cut


def batches(
    source: Source,
    turns: Sequence[Turn],
    net: stage.Config,
    words: Tokenizer,
    cfg: Any,
    seed: int,
    start: int,
) -> Iterator[Batch]:
    """The batches of a phase, from its step `start` on: "pixels" uint8 [B, T, H, W, 3] (or what
    else the source has made of them), "ids", and for SDXL "size_ids" [B, 6].

    Where `data.decoded` is set, "decoded" [B] says of which rows the reference picture is to be
    seen as the autoencoder gives it back: of none, or of all of a step.
    """
    rows = tokens.rows_of(cfg.data, words)
    share = float(cfg.data.get("decoded", 0.0))
    sized = getattr(net.stage.unet, "pooled_width", None) is not None
    own = _rows(cfg.mesh)
    warn_of_cut(source, words, rows)
    for step, samples in source.stream(turns, own, net.factor, seed, start):
        names = [name for name in samples[0].arrays if sized or name != "size_ids"]
        batch = {name: np.stack([one.arrays[name] for one in samples]) for name in names}
        batch["ids"] = tokens.encode(words, [one.caption for one in samples], rows)
        if share:
            shown = np.random.default_rng([seed, step, 1]).random() < share
            batch["decoded"] = np.full(len(samples), shown, np.float32)
        kind = next(turn for turn in turns if step % _cycle(turns) in turn.turns)
        yield Share(batch, kind.batch) if jax.process_count() > 1 else batch


def with_latents(batch: Batch, vae: Params, cfg: VAEConfig) -> Batch:
    """A streamed batch with its "latent" [B, T, h, w, C] and the reference "image" [B, H, W, 3]."""
    batch = dict(batch)
    decoded = batch.pop("decoded", None)
    if "pixels" in batch:
        pixels = batch.pop("pixels")
        if pixels.dtype == jnp.uint8:
            pixels = pixels.astype(jnp.float32) / 127.5 - 1.0
        batch["latent"], batch["image"] = latents.encode(vae, cfg, pixels), pixels[:, 0]
    elif "image" in batch:
        batch["image"] = batch["image"].astype(jnp.float32) / 127.5 - 1.0
    if decoded is not None:

        def back() -> jax.Array:
            return latents.decode(vae, cfg, batch["latent"][:, 0].astype(jnp.float32))

        batch["image"] = jax.lax.cond(jnp.any(decoded > 0), back, lambda: batch["image"])
    return jax.lax.stop_gradient(batch)


def warn_of_cut(source: Source, words: Tokenizer, rows: int) -> None:
    """Says how many of the first captions do not fit their rows.

    Raises:
        InputError: they are words that a word tokenizer does not know, all of them.
    """
    said = source.examples(min(LOOKED_AT, source.length or LOOKED_AT))
    cut = tokens.cut(words, said, rows)
    if cut:
        processes.say(
            f"{cut} of {len(said)} captions are longer than their rows, and lose their end"
            + (f": data.caption_rows={rows + 1} takes more" if words.in_rows else "")
        )
    known = [text for text in said if len(words.unknown(text)) < len(text.split())]
    if said and not known and any(said):
        raise InputError(
            f"captions such as {next(filter(None, said))!r} hold no word that this cascade's text "
            "encoder knows"
        )


def _rows(mesh: Mapping[str, int]) -> Callable[[int], np.ndarray]:
    return lambda batch: own_rows(mesh, batch)


def _cycle(turns: Sequence[Turn]) -> int:
    return sum(len(turn.turns) for turn in turns)
