"""Learning from an arena's votes (`mv2 arena`): Diffusion-DPO, or fine-tuning on the winners.

A pair is a comparison on which more raters were for one video than for the other. T2I learns from
first frames, I2V from frames spread over the videos, each conditioned on its own first frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mv2_jax import config, files, params
from mv2_jax.errors import InputError
from mv2_jax.infer import media
from mv2_jax.infer.arena import build, table
from mv2_jax.infer.arena.store import CRITERIA, GOLD
from mv2_jax.lookup import one_of
from mv2_jax.stages import latents as codec
from mv2_jax.train import source, unread
from mv2_jax.train.latents import Shards, position
from mv2_jax.train.task import Batch, Component, Task, require
from mv2_jax.train.toybox import dpo

_SPREAD = 1e9  # seconds between frames: more than any video has, so they are spread over it
_CHUNK = 4  # clips that are encoded at a time


class Pair(NamedTuple):
    """Two videos of a prompt. margin: by how much of all votes the better one leads."""

    prompt: str
    better: Path
    worse: Path
    margin: float


def pairs_of(votes: str, criterion: str, margin: float) -> list[Pair]:
    """The comparisons of an arena that its raters decided.

    Raises:
        InputError: no arena, an unknown criterion, or no pair with such a lead.
    """
    one_of(criterion, CRITERIA, "data.criterion")
    arena = build.load(votes)
    try:
        _, found = table.read(arena)
        videos = {
            row["number"]: (arena.video(row["first"]), arena.video(row["second"]))
            for row in arena.rows("SELECT number, first, second FROM comparisons")
        }
    finally:
        arena.close()
    counted = {rater.number for rater in table.raters(found) if rater.counted}
    said: dict[int, list[table.Vote]] = {}
    for vote in found:
        if vote.kind != GOLD and vote.criterion == criterion and vote.rater in counted:
            said.setdefault(vote.comparison, []).append(vote)
    pairs = []
    for comparison, group in sorted(said.items()):
        lead = sum(1 - vote.outcome for vote in group) / len(group)
        if lead and abs(lead) >= margin:
            first, second = videos[comparison]
            better, worse = (first, second) if lead > 0 else (second, first)
            pairs.append(Pair(group[0].prompt, better, worse, abs(lead)))
    if not pairs:
        raise InputError(f"{votes}: no video leads by {margin:g} of its votes on {criterion}")
    return pairs


class _Voted(dpo.Preferences):
    """Pairs from votes."""

    def reads(self) -> set[str]:
        return super().reads() | {"data.votes", "data.criterion"}

    @cached_property
    def voted(self) -> list[Pair]:
        data = self.cfg.data
        return pairs_of(data.votes, data.criterion, data.margin)

    def shards(self) -> Shards:
        """The pairs' latents, a pair a shard."""
        facts = {
            "what": f"voted pairs of {self.cfg.stage}",
            "vae": params.digest(self.vae),
            "stage": config.to_dict(self.net.stage),
            "pairs": [[pair.prompt, files.sha256(pair.better), files.sha256(pair.worse)]
                      for pair in self.voted],
        }  # fmt: skip
        return Shards(self.folder.parent / "pairs", facts, self._made, len(self.voted), 1)

    def _made(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        pair = self.voted[int(numbers[0])]
        net, frames = self.net.stage, 1 if self.cfg.stage == "t2i" else self.net.stage.frames
        found = {"margin": np.array([pair.margin], np.float32)}
        for half in ("better", "worse"):
            clip = media.read_video(getattr(pair, half), net.size, frames, _SPREAD)
            pixels = media.to_float(clip)
            parts = [np.asarray(self.encoded(self.vae, pixels[at : at + _CHUNK]))
                     for at in range(0, frames, _CHUNK)]  # fmt: skip
            latents = np.concatenate(parts).astype(np.float16)
            found[half] = latents if self.cfg.stage == "t2i" else latents[None]
            if self.cfg.stage == "i2v":
                name = "image" if half == "better" else "image_worse"
                found[name] = pixels[None, 0].astype(np.float16)
        return found

    @cached_property
    def encoded(self) -> Any:
        cfg = self.begin["vae"].config
        return jax.jit(lambda vae, x: codec.encode(vae, cfg, x))

    def batches(self, seed: int, start: int) -> Iterator[Batch]:
        shards, step = self.shards(), start
        while True:
            chosen = position(seed, step, self.cfg.batch, len(self.voted))
            ids = self.words.encode([self.voted[int(number)].prompt for number in chosen])
            yield {**shards.take(chosen), "ids": ids}
            step += 1


class Pictures(_Voted, dpo.OfPictures):
    """T2I, from first frames."""


class Clips(_Voted, dpo.OfClips):
    """I2V, from frames spread over the videos."""


def make(cfg: Any, begin: Mapping[str, Component], folder: Path) -> Task:
    """The task, over everything that its stage is made of.

    Raises:
        InputError: no arena or no votes, an unknown stage, kind of loss or tree, a component that
            is missing, or a setting that changes nothing.
    """
    one_of(cfg.stage, dpo.STAGES, "stage")
    one_of(cfg.loss.kind, dpo.KINDS, "loss.kind")
    if not cfg.data.votes:
        raise InputError("data.votes: name the arena's file, with --votes arena/arena.db")
    require(begin, *dpo.NEEDED[cfg.stage])
    task = (Pictures if cfg.stage == "t2i" else Clips)(cfg, begin, folder)
    unread.refuse(cfg, task.reads(), task.idle(), source.of(cfg))
    if "reference" in task.net.inputs:
        raise InputError("votes do not say what a SparseCtrl was shown: train stage=t2i on them")
    print(f"{len(task.voted)} pairs on which raters lean to one video", flush=True)
    return task.task()
