"""Pairs to learn preferences from: candidates of one prompt, ranked by a judge.

Prompts are of the training split. Of every prompt some candidates are made with other noise; the
one in which the judge finds the asked-for words most surely is the better, the one in which it does
least is the worse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mv2_jax.diffusion import keys as named
from mv2_jax.toybox import captions, evaluate
from mv2_jax.toybox.judge import KINDS, PICTURED
from mv2_jax.train.toybox import worlds


def labels(
    seed: int, numbers: np.ndarray, motions: Mapping[str, float] | None = None
) -> np.ndarray:
    """The words [n, 4] int32 of the prompts with these numbers, see `worlds.numbered`."""
    return np.asarray(worlds.labels(worlds.numbered(seed, numbers, motions)))


def prompts(words: np.ndarray) -> list[str]:
    """The canonical captions of words [n, 4]."""
    return [captions.canonical(*row) for row in words.tolist()]


def keys(seed: int, numbers: np.ndarray, candidate: int) -> jax.Array:
    """Keys [n] of one candidate each of these prompts."""
    base = named.fold(named.fold(named.seed(seed % 2**32), "preference pairs"), candidate)
    return named.each(base, numbers)


def scores(jury: evaluate.Jury, video: Any, words: np.ndarray) -> np.ndarray:
    """How surely the judge finds the asked-for words in clips [n, T, H, W, 3]: the sum [n] of the
    words' log-probabilities. Of single frames the motion does not count."""
    verdicts = evaluate.judge(jury, video)
    return evaluate.surety(verdicts, words, KINDS if np.shape(video)[1] > 1 else PICTURED)


def rank(
    jury: evaluate.Jury,
    words: np.ndarray,
    candidates: int,
    make: Callable[[int], tuple[np.ndarray, Any]],
) -> dict[str, np.ndarray]:
    """The better and the worse latent for every row of words [n, 4].

    Args:
        candidates: how many are made of each prompt, at least 2.
        make: number of a candidate -> (latents [n, ..., C], clips [n, T, H, W, 3]).

    Returns:
        {"better", "worse": latents fp16, "margin": [n] fp32, how much surer the judge is}.

    Raises:
        ValueError: fewer than two candidates.
    """
    if candidates < 2:
        raise ValueError(f"a pair takes two candidates at least, not {candidates}")
    latents, found = [], []
    for number in range(candidates):
        latent, video = make(number)
        latents.append(np.asarray(latent, np.float16))
        found.append(scores(jury, video, words))
    all_latents, all_scores = np.stack(latents), np.stack(found)
    best, worst, rows = all_scores.argmax(0), all_scores.argmin(0), np.arange(len(words))
    # Where the judge sees no difference, the first and the last stand for a pair without a margin.
    worst = np.where(best == worst, candidates - 1, worst)
    margin = all_scores[best, rows] - all_scores[worst, rows]
    return {
        "better": all_latents[best, rows],
        "worse": all_latents[worst, rows],
        "margin": margin.astype(np.float32),
    }
