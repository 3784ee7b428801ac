"""The tokenizer that a phase reads captions with, and captions as its rows of ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mv2_jax import text
from mv2_jax.config import TextConfig
from mv2_jax.errors import InputError
from mv2_jax.text.bpe import CLIPTokenizer
from mv2_jax.train.source import Source
from mv2_jax.train.task import Component

LEGACY_END = 2  # what early CLIP configs say of their end token, whatever it is


def tokenizer(begin: Mapping[str, Component], source: Source, cfg: TextConfig) -> text.Tokenizer:
    """That of the text encoder in `begin`, as its cascade folder or phase says; where there is
    none, or it does not say, the source's own vocabulary, in rows as long as the text encoder's.

    Raises:
        InputError: there is neither, or its rows are of another length than the text encoder takes.
    """
    held = begin.get("text_encoder")
    if held is not None and held.tokenizer is not None:
        words = text.from_json(held.tokenizer)
    else:
        words = source.tokenizer(cfg.max_length)
    if words.max_length != cfg.max_length:
        raise InputError(
            f"the tokenizer makes rows of {words.max_length} tokens, and the text encoder takes "
            f"{cfg.max_length}"
        )
    return words


def fit(cfg: TextConfig, words: text.Tokenizer) -> TextConfig:
    """A fresh text encoder's config with the tokenizer's vocabulary and end token."""
    return dataclasses.replace(cfg, vocab_size=words.vocab_size, eos_token_id=words.eos_token_id)


def check(cfg: TextConfig, words: text.Tokenizer) -> None:
    """Refuses a tokenizer whose ids mean something else to a trained text encoder.

    A CLIP encoder may know more tokens than CLIP's tokenizer (concepts that were added to it).

    Raises:
        InputError: they differ in the size of the vocabulary or in the end token.
    """
    clip = isinstance(words, CLIPTokenizer)
    grown = clip and cfg.vocab_size > words.vocab_size
    if words.vocab_size != cfg.vocab_size and not grown:
        raise InputError(
            f"the captions' tokenizer knows {words.vocab_size} tokens, and the text encoder that "
            f"training begins from {cfg.vocab_size}: begin from the folder it belongs to"
        )
    if cfg.eos_token_id not in (words.eos_token_id, LEGACY_END if clip else None):
        raise InputError(
            f"the captions' tokenizer ends a row with token {words.eos_token_id}, and the text "
            f"encoder that training begins from with {cfg.eos_token_id}: begin from the folder it "
            "belongs to"
        )


def rows_of(data: Mapping[str, Any], words: text.Tokenizer) -> int:
    """How many rows of tokens a caption gets: `data.caption_rows`, 1 by default.

    Raises:
        InputError: fewer than 1, or several for a text encoder that reads single rows.
    """
    rows = int(data.get("caption_rows", 1))
    if rows < 1:
        raise InputError(f"data.caption_rows is {rows}: it must be 1 or more")
    if rows > 1 and not words.in_rows:
        raise InputError(
            f"data.caption_rows is {rows}, and this text encoder was trained on single rows: set 1"
        )
    return rows


def encode(words: text.Tokenizer, captions: Sequence[str], rows: int = 1) -> np.ndarray:
    """Captions as token ids: int32 [B, L], or with several `rows` [B, rows, L].

    A caption that is longer loses its tail; a shorter one ends in empty rows, as prompts do where
    they are sampled. Brackets are text here, and mark nothing.
    """
    if rows == 1:
        return words.encode(list(captions))
    room = words.max_length - 2
    tokens = [words.tokenize(caption) for caption in captions]
    parts = [[own[i * room : (i + 1) * room] for i in range(rows)] for own in tokens]
    return np.stack([[words.row(part) for part in own] for own in parts])


def cut(words: text.Tokenizer, captions: Sequence[str], rows: int = 1) -> int:
    """How many of these captions have more tokens than fit."""
    room = rows * (words.max_length - 2)
    return sum(len(words.tokenize(caption)) > room for caption in captions)
