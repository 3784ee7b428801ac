"""Measuring with the judge: verdicts on videos and images, and rates with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import config
from mv2_jax import params as trees
from mv2_jax.errors import InputError
from mv2_jax.toybox import intervals
from mv2_jax.toybox.judge import KINDS, Judge, prepare
from mv2_jax.toybox.vocabulary import COLOURS, MOTIONS, SCENES, THINGS

WEIGHTS = Path(__file__).parent.parent / "weights" / "judge" / "judge.safetensors"
_FLOOR = 1e-4  # of a probability: one word that is surely wrong does not drown the others
CLASSES = {kind: (*words, "none") for kind, words in zip(KINDS, (THINGS, COLOURS, SCENES, MOTIONS))}


class Jury(NamedTuple):
    """The judge's parameters (fp32) and sizes, as `load` returns them."""

    params: dict[str, Any]
    cfg: config.JudgeConfig


class Verdict(NamedTuple):
    """Of a batch: the classes' indices [B], their words, and the probability [B, classes] of every
    class; the last class is "none"."""

    index: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]
    words: list[str]
    probabilities: np.ndarray


class Rate(NamedTuple):
    """`right` of `count`, as a share, with the 95% interval from `low` to `high`."""

    right: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.share:.1%} ({self.low:.1%} to {self.high:.1%}; {self.right}/{self.count})"


def load(path: str | Path = WEIGHTS) -> Jury:
    """The judge that ships with the package, or another from its safetensors file.

    Raises:
        InputError: there is no such file, it is damaged, or it holds no judge.
    """
    if not Path(path).is_file():
        raise InputError(f"no judge at {path}: train one with `mv2 train toybox/judge`")
    try:
        cfg = trees.load_metadata(path).get("config")
        tree = trees.load(path)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not cfg or cfg.get("class") != "JudgeConfig":
        raise InputError(f"{path} holds no judge: its metadata has no JudgeConfig")
    return Jury(trees.cast(tree, np.float32), config.from_dict(cfg))


@partial(jax.jit, static_argnums=2)
def _probabilities(weights, video, cfg):
    """Clips [B, T, H, W, 3] -> {kind: [B, classes]}; frames' probabilities are averaged."""
    model, video = Judge(cfg), prepare(video, cfg)
    logits = cast(dict[str, jax.Array], model.apply({"params": weights}, video))
    out = {}
    for kind, values in logits.items():
        share = jax.nn.softmax(values)
        out[kind] = share.reshape(video.shape[0], -1, share.shape[-1]).mean(axis=1)
    return out


def judge(jury: Jury, video, chunk: int = 16) -> dict[str, Verdict]:
    """What videos show, by the judge.

    Args:
        jury: from `load`.
        video: [B, T, H, W, 3], uint8, or float in [-1, 1]; any size. Of a video of one frame
            (an image) only thing, colour and scene mean something.
        chunk: how many are looked at together.

    Returns:
        A Verdict each for "thing", "colour", "scene" and "motion".

    Raises:
        ValueError: `video` has another shape.
    """
    if np.ndim(video) != 5 or np.shape(video)[-1] != 3:
        raise ValueError(f"videos are [B, T, H, W, 3], not {list(np.shape(video))}")
    parts = []
    for start in range(0, len(video), chunk):
        part = jnp.asarray(video[start : start + chunk])
        # Always the same shape, so that the last part compiles nothing new.
        missing = (chunk if len(video) > chunk else len(part)) - len(part)
        padded = jnp.pad(part, [(0, missing)] + [(0, 0)] * 4)
        probabilities = jax.device_get(_probabilities(jury.params, padded, jury.cfg))
        parts.append({kind: p[: len(part)] for kind, p in probabilities.items()})
    verdicts = {}
    for kind in KINDS:
        probabilities = np.concatenate([part[kind] for part in parts])
        index = probabilities.argmax(axis=1)
        verdicts[kind] = Verdict(index, [CLASSES[kind][i] for i in index], probabilities)
    return verdicts


def right(verdicts: dict[str, Verdict], words) -> dict[str, np.ndarray]:
    """Which verdicts are right, bool [B] by kind, and under "all" where all four are.

    words: [B, 4] indices (thing, colour, scene, motion) of what was asked for.
    """
    words = np.asarray(words)
    found = {kind: verdicts[kind].index == words[:, i] for i, kind in enumerate(KINDS)}
    return {**found, "all": np.logical_and.reduce(list(found.values()))}


def surety(verdicts: dict[str, Verdict], words, kinds: Sequence[str] = KINDS) -> np.ndarray:
    """How sure the judge is of the asked-for words [B, 4]: the sum [B] of the log-probabilities
    of those of `kinds`, each no less than that of one in ten thousand."""
    words, total = np.asarray(words), np.zeros(len(words))
    for kind in kinds:
        asked = words[:, KINDS.index(kind)]
        share = verdicts[kind].probabilities[np.arange(len(words)), asked]
        total += np.log(np.maximum(share, _FLOOR))
    return total


def accuracy(jury: Jury, video, words) -> dict[str, Rate]:
    """Rates of right verdicts on videos [B, T, H, W, 3] by kind, and of "all" four at once."""
    return {
        kind: wilson(int(hits.sum()), len(hits))
        for kind, hits in right(judge(jury, video), words).items()
    }


def wilson(successes: int, count: int) -> Rate:
    """A rate with Wilson's 95% interval.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= count or count == 0:
        raise ValueError(f"{successes} of {count} is no rate")
    return Rate(successes, count, successes / count, *intervals.wilson(successes, count))
