"""Where training's samples come from: a `Source`, found by `data.source` in a recipe.

A source is a numbered list of captioned clips, pictures being clips of one frame. Tasks ask for
numbers, sizes and captions, and never where they come from. `data.source` is a word of `SOURCES`
("toybox") or `module:name` of anyone's own class (see `docs/extending.md`).

What a step sees depends on its seed and its number alone: `pick` says which samples, `captions`
which of their captions. So the step is all the state that a checkpoint needs, a resumed run sees
what the whole one would have, and a process can read the rows that are its own.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.errors import InputError
from mv2_jax.lookup import find
from mv2_jax.text import Tokenizer
from mv2_jax.train import needs
from mv2_jax.train.latents import position
from mv2_jax.train.media.records import RECORDS

Arrays = dict[str, Any]

OWN = "mv2_jax.train.media.source:Media"
SOURCES = {
    "toybox": "mv2_jax.train.toybox.source:Toybox",
    "storybox": "mv2_jax.train.storybox.source:Storybox",
    "videos": "mv2_jax.train.videos:Videos",
    **RECORDS,
    "precomputed": "mv2_jax.train.media.precomputed:Precomputed",
}


class Source(ABC):
    """Captioned clips by number. A subclass says how many, what they are and what they are called.

    Args:
        data: the phase's `data` settings, such as `data.root`.
        seed: the phase's `seed`, for what is drawn and not read.

    Attributes:
        length: how many samples there are; None: as many as are asked for. `data.count` of them
            are an epoch, going round where there are fewer.
        settings: {"clips", "pictures" or "triplets": names of the `data` settings that it reads to
            make these}, so that others are refused; None: it does not say, and none is.
        traced: `read` is made of JAX's operations over traced numbers, and runs on every device
            (a renderer); else it is called with NumPy's, on the host, in the prefetching thread.
    """

    length: int | None = None
    settings: Mapping[str, Sequence[str]] | None = None
    traced: ClassVar[bool] = False
    streams: ClassVar[bool] = False

    def __init__(self, data: Mapping[str, Any], seed: int) -> None:
        self.data, self.seed = data, seed

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """What its samples depend on, ready for JSON: latents are kept on disk under a digest of
        it. Files' names and sizes, a seed, a version."""

    @abstractmethod
    def read(self, numbers: Any, frames: int, size: tuple[int, int]) -> tuple[Any, Arrays]:
        """The clips [n, frames, H, W, 3] in [-1, 1] with these numbers [n], H x W being `size`,
        and notes of them: arrays [n, ...] that are kept with the clips' latents, for `captions`.
        """

    def notes(self, numbers: Any) -> Arrays:
        """The notes alone, as `read` gives them, of a source that is `traced`."""
        raise NotImplementedError

    @abstractmethod
    def captions(self, notes: Arrays, seed: int, step: int) -> list[str]:
        """A caption for each row of notes; where there are several, drawn by (seed, step)."""

    def stream(self, *asked: Any) -> Any:
        """Of a source whose samples are read as they are needed, and not kept as latents: see
        `media.source.Media.stream`. `streams` says whether it is one."""
        raise NotImplementedError

    def tokenizer(self, max_length: int) -> Tokenizer:
        """The vocabulary of its captions, for a text encoder that is trained from scratch.

        Raises:
            InputError: there is none, as of real captions: begin from a text encoder.
        """
        raise InputError(
            f"{type(self).__name__} has no vocabulary of its own: begin from the text_encoder of a "
            "cascade folder, whose tokenizer then reads the captions"
        )

    def pick(self, seed: int, step: int, batch: int, count: int) -> np.ndarray:
        """Which of `count` samples a step sees: numbers [batch]."""
        return position(seed, step, batch, count)

    def clips(self, numbers: Sequence[int], frames: int, size: tuple[int, int]) -> tuple[Any, Any]:
        """`read` for numbers from anywhere: those beyond the last go round."""
        numbers = np.asarray(numbers)
        return self.read(numbers % self.length if self.length else numbers, frames, size)

    def pictures(self, seed: int, step: int, batch: int, size: int, crop: int = 0) -> Any:
        """A step's square pictures [B, size, size, 3] in [-1, 1], for the autoencoder; with `crop`,
        as many squares of that side as make up the pixels of `batch` whole ones.
        """
        count = self.length or int(self.data["count"])
        numbers = self.pick(seed, step, batch, count)
        whole = np.asarray(self.clips(numbers, 1, (size, size))[0])[:, 0]
        if not crop:
            return whole
        random, pieces = np.random.default_rng([seed, step, 3]), (size // crop) ** 2
        corners = random.integers(size - crop + 1, size=(len(whole), pieces, 2))
        cuts = [
            picture[y : y + crop, x : x + crop]
            for picture, places in zip(whole, corners)
            for y, x in places
        ]
        return np.stack(cuts)

    def triplets(self, numbers: np.ndarray) -> Arrays:
        """What frame interpolation learns from (see `train.triplets`): uint8 "first", "second",
        "target" [n, side, side, 3] and fp32 "time" [n] of the target. By default the first, last
        and middle of three frames.
        """
        side = int(self.data["side"])
        frames = np.asarray(self.clips(numbers, 3, (side, side))[0])
        levels = np.round((np.clip(frames, -1, 1) + 1) * 127.5).astype(np.uint8)
        named = {"first": levels[:, 0], "second": levels[:, 2], "target": levels[:, 1]}
        return {**named, "time": np.full(len(levels), 0.5, np.float32)}

    def examples(self, count: int) -> list[str]:
        """The captions of sample sheets, the same every time."""
        return self.captions(self.clips(np.arange(count), 1, (32, 32))[1], 0, 0)

    def example_clips(self, key: jax.Array, count: int, frames: int, size: tuple[int, int]) -> Any:
        """Clips of the captions of `examples`; a source that draws them may use the key."""
        del key
        return jnp.asarray(self.clips(np.arange(count), frames, size)[0])


def held_out(task: Any) -> Any:
    """The batches of `validate.root`, made as a task makes its own; None where it names none.

    Args:
        task: has `cfg`, `source` and `batches`, which reads no other source.

    Raises:
        InputError: the task's source reads no files.
    """
    cfg = task.cfg
    if not (cfg.validate.every and cfg.validate.root):
        return None
    if not task.source.streams or cfg.data.get("source") == "precomputed":
        raise InputError(
            "validate.root: only sources that read clips and pictures as they train take another "
            "folder; leave it out to validate on samples of the training source"
        )
    other = cfg.copy_and_resolve_references()
    other.data.update({"root": cfg.validate.root, "mix": (), "captions": ""})
    held = copy.copy(task)
    held.cfg, held.source = other, of(other)
    return held.batches


def of(cfg: Any, default: str = "toybox") -> Source:
    """The source of a phase's settings.

    Raises:
        InputError: an unknown source, or settings that it cannot use.
    """
    name = cfg.data.get("source", default)
    if cfg.data.get("mix"):
        name = next(iter(RECORDS))  # each of the mix names its own
    found = find(name, SOURCES, "data source", fits=callable, wants="a Source")
    if (
        getattr(found, "records", None) is True
    ):  # of a kind of storage: what reads it is the same for all
        needs.check("training on files", needs.DATA, "data")
        found = find(OWN, {}, "data source")
    made = found(cfg.data, cfg.seed)
    if not isinstance(made, Source):
        raise InputError(f"data.source: {name!r} makes a {type(made).__name__}, not a Source")
    return made
