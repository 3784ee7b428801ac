"""What kind of word a word is, and which words are like it: for prompts that use unknown words.

A table of English words (data/kinds.npz; how it is made and from what: data/KINDS.md) has for each
its kind, by WordNet, and a short vector, by GloVe. It only helps to answer people: no network sees
it.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

import numpy as np

KINDS = ("thing", "colour", "scene", "motion")
TABLE = Path(__file__).with_name("data") / "kinds.npz"
_SPELLED = 0.75  # difflib's ratio: "boll" for "ball", not "doll"


@cache
def _table() -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    """{word: its row}, kinds [N] (0 for none, else 1 + the index in KINDS), vectors [N, D]."""
    with np.load(TABLE) as table:
        words = table["words"].tobytes().decode().split("\n")
        vectors = table["vectors"].astype(np.float32)
        return {word: row for row, word in enumerate(words)}, table["kinds"], vectors


def kind(word: str) -> str | None:
    """ "thing", "colour", "scene" (places, times, weather) or "motion" (what is done): the kind of
    the commonest sense of an English word, lower case; None for any other word."""
    rows, kinds, _ = _table()
    return KINDS[kinds[rows[word]] - 1] if word in rows and kinds[rows[word]] else None


def is_english(word: str) -> bool:
    """Whether the table has the word at all."""
    return word in _table()[0]


def like(word: str, known: Iterable[str], count: int = 3) -> tuple[str, ...]:
    """Of the `known` words the `count` that are nearest in meaning, nearest first.

    None where the table does not have the word; known words that it does not have are left out.
    """
    rows, _, vectors = _table()
    candidates = [each for each in dict.fromkeys(known) if each in rows]
    if word not in rows or not candidates:
        return ()
    of_known = vectors[[rows[each] for each in candidates]]
    cosines = of_known @ vectors[rows[word]] / np.linalg.norm(of_known, axis=1)
    return tuple(candidates[i] for i in np.argsort(-cosines, kind="stable")[:count])


def spelled(word: str, known: Collection[str]) -> str | None:
    """The known word that is spelt almost so, or None."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=_SPELLED)
    return near[0] if near else None
