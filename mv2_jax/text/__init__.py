"""Tokenizers: from prompts to fixed-length rows of token ids.

Both kinds share one interface, so that a cascade names its tokenizer and nothing else changes:

- `encode(texts) -> int32 [B, max_length]`, start and end tokens included;
- `tokenize(text) -> ids` alone, `row(ids) -> int32 [max_length]`, and `in_rows`, whether its text
  encoders read longer prompts as several rows: what `emphasis` makes marked prompts from;
- `vocab_size`, `eos_token_id`, `max_length`, for the text encoder's config;
- `unknown(text) -> [word]`, for a warning to the user;
- `to_json() -> dict` of plain values and `from_json(dict)`, the form kept in a cascade folder.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from mv2_jax.errors import InputError
from mv2_jax.lookup import one_of
from mv2_jax.text import emphasis, timing
from mv2_jax.text.bpe import CLIPTokenizer, Embedding
from mv2_jax.text.words import WordTokenizer

__all__ = [
    "CLIPTokenizer",
    "Embedding",
    "Tokenizer",
    "WordTokenizer",
    "emphasis",
    "from_json",
    "named",
    "of_stage",
    "timing",
]


class Tokenizer(Protocol):
    """What every tokenizer of this package offers."""

    max_length: int
    in_rows: bool

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_id(self) -> int: ...

    def encode(self, texts: list[str]) -> np.ndarray: ...

    def tokenize(self, text: str) -> list[int]: ...

    def row(self, ids: list[int]) -> np.ndarray: ...

    def unknown(self, text: str) -> list[str]: ...

    def to_json(self) -> dict[str, Any]: ...


_KINDS = {"CLIPTokenizer": CLIPTokenizer, "WordTokenizer": WordTokenizer}


def of_stage(tokenizer: Tokenizer, stage: str) -> Tokenizer:
    """The tokenizer as a stage's text encoders know it: without embeddings of other stages."""
    own = getattr(tokenizer, "of_stage", None)
    return own(stage) if own else tokenizer


def named(tokenizer: Tokenizer, text: str) -> str:
    """A prompt without `embedding:` before the names of embeddings that the tokenizer knows."""
    own = getattr(tokenizer, "named", None)
    return own(text) if own else text


def from_json(data: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `to_json` described.

    Raises:
        InputError: no tokenizer's JSON, or an unknown kind; the message names the nearest known.
    """
    if not isinstance(data, dict):
        raise InputError(f"the tokenizer is {str(data)[:40]!r}; it is an object with a class")
    kind = one_of(data.get("class"), _KINDS, "tokenizer")
    try:
        return _KINDS[kind].from_json(data)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"the tokenizer is damaged: {type(error).__name__} {error}") from None
