"""A tokenizer of whole words, for text encoders trained here on a small, closed vocabulary."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

PAD, UNKNOWN, START, END = range(4)
"""Ids of the four special tokens; words follow. END is not 2 on purpose: CLIP configs that say
`eos_token_id` 2 mean an old rule of pooling (see models/clip_text.py)."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def split_words(text: str) -> list[str]:
    """Lower-case words of `text`; punctuation separates, an apostrophe inside a word does not."""
    return _WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


class WordTokenizer:
    """One id a word: start, words, end, then padding.

    Args:
        words: the vocabulary, lower case, no word twice; ids follow this order, so it is part of
            the weights and is stored with them (`to_json`).
        max_length: ids in a row; longer prompts lose their tail, the end token stays.

    Raises:
        ValueError: an empty list, a word that occurs twice, or one that `split_words` would not
            find as it stands.
    """

    eos_token_id = END
    in_rows = False  # its text encoders were trained on single rows

    def __init__(self, words: list[str], max_length: int = 20):
        if not words:
            raise ValueError("a word tokenizer needs at least one word")
        if max_length < 3:
            raise ValueError(f"max_length {max_length} leaves no room for words")
        for word in words:
            if split_words(word) != [word]:
                raise ValueError(f"vocabulary entry {word!r} is not one lower-case word")
        self.words = tuple(words)
        self.max_length = max_length
        self._ids = {word: i for i, word in enumerate(self.words, END + 1)}
        if len(self._ids) != len(self.words):
            twice = next(word for i, word in enumerate(words) if word in words[:i])
            raise ValueError(f"vocabulary word {twice!r} occurs twice")

    @property
    def vocab_size(self) -> int:
        """Words and special tokens together."""
        return len(self.words) + END + 1

    def tokenize(self, text: str) -> list[int]:
        """Ids of `text` alone: no start, no end, no limit; unknown words take the id UNKNOWN."""
        return [self._ids.get(word, UNKNOWN) for word in split_words(text)]

    def row(self, ids: list[int]) -> np.ndarray:
        """int32 [max_length] of ids, at most max_length - 2: start, ids, end, padding."""
        row = np.full(self.max_length, PAD, np.int32)
        row[: len(ids) + 2] = [START, *ids, END]
        return row

    def encode(self, texts: list[str]) -> np.ndarray:
        """Prompts -> int32 [B, max_length]; unknown words take the id UNKNOWN."""
        rows = [self.row(self.tokenize(text)[: self.max_length - 2]) for text in texts]
        return np.asarray(rows, np.int32).reshape(-1, self.max_length)

    def unknown(self, text: str) -> list[str]:
        """The words of `text` outside the vocabulary, in order of first appearance, each once."""
        return list(dict.fromkeys(word for word in split_words(text) if word not in self._ids))

    def knows_any(self, text: str) -> bool:
        """Whether a word of `text` is in the vocabulary."""
        return any(word in self._ids for word in split_words(text))

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` takes."""
        words = list(self.words)
        return {"class": "WordTokenizer", "words": words, "max_length": self.max_length}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> WordTokenizer:
        """Inverse of `to_json`."""
        return cls(data["words"], max_length=data["max_length"])
