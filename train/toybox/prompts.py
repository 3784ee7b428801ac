"""Captions of toybox worlds, drawn anew every time a world is seen."""

from __future__ import annotations

import numpy as np

from mv2_jax.toybox import captions, split


def draw(labels: np.ndarray, seed: int, step: int, plain: float = 0.2) -> list[str]:
    """A caption for each row of labels [B, 4]; a share `plain` of them the canonical one."""
    rng = np.random.default_rng([seed, step])
    chances = rng.integers(2**31, size=len(labels))
    canonical = rng.random(len(labels)) < plain
    return [
        captions.canonical(*words) if easy else captions.caption(int(chance), *words)
        for words, easy, chance in zip(labels.tolist(), canonical, chances)
    ]


def examples(count: int) -> list[tuple[int, int, int, int]]:
    """`count` four-tuples of the training split, the same every time, for sample sheets."""
    chosen = np.random.default_rng(0).permutation(split.TRAIN)[:count]
    return [tuple(int(v) for v in row) for row in chosen]
