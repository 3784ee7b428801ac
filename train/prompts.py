"""Captions of toybox worlds as token ids, drawn anew every time a world is seen."""

from __future__ import annotations

import dataclasses

import numpy as np

from mv2_jax.config import TextConfig
from mv2_jax.text import WordTokenizer
from mv2_jax.toybox import captions, split


def tokenizer(cfg: TextConfig) -> WordTokenizer:
    """The toybox's words, in rows as long as the text encoder's."""
    return WordTokenizer(captions.VOCABULARY, max_length=cfg.max_length)


def fit(cfg: TextConfig) -> TextConfig:
    """The text encoder's config with the tokenizer's vocabulary and end token."""
    words = tokenizer(cfg)
    return dataclasses.replace(cfg, vocab_size=words.vocab_size, eos_token_id=words.eos_token_id)


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
