"""Prompts that say how much each part counts, and prompts of any length.

The marks are those of the Stable Diffusion web UI, which other tools took over:

    (word)        1.1 times        ((word))  1.21 times, and so on
    [word]        1 / 1.1 times
    (word:1.3)    1.3 times; the number replaces the 1.1
    \\( \\) \\[ \\]   brackets that mean themselves; \\\\ is a backslash

    BREAK         what follows begins a new row

Marks nest, and their factors multiply. A bracket that is never closed counts to the end; one that
was never opened means itself.

What a weight does is left to `Marked`'s reader (`conditions.text`). A prompt longer than the
text encoder reads is cut into rows of as many tokens as fit (75 for CLIP), wherever that falls.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import jax

    from mv2_jax.text import Tokenizer

Array: TypeAlias = "np.ndarray | jax.Array"
UP, DOWN = 1.1, 1 / 1.1
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_MARK = re.compile(r"\\[\\()\[\]]|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[()\[\]]|[^\\()\[\]:]+|\\|:")


class Marked(NamedTuple):
    """Prompts as rows of tokens, with what each token counts; a tree of arrays.

    ids: int32 [B, n, L], n rows a prompt; shorter prompts end in rows of nothing.
    weights: float32 [B, n, L], 1 where nothing is marked.
    empty: int32 [1, L], the row of the empty prompt, from which weights are measured.
    """

    ids: Array
    weights: Array
    empty: Array


def parse(text: str) -> list[tuple[str, float]]:
    """A prompt as (text, weight) pieces, marks and escapes taken out; never empty.

    Raises nothing: whatever is no mark is text.
    """
    pieces: list[list] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> bool:
        """Weighs what was said since the bracket was opened; False where none is open."""
        if not opened[bracket]:
            return False
        for piece in pieces[opened[bracket].pop() :]:
            piece[1] *= factor
        return True

    for match in _MARK.finditer(text):
        mark, number = match[0], match[1]
        if mark in opened:
            opened[mark].append(len(pieces))
        elif number is not None and close("(", float(number)):
            pass
        elif (mark == ")" and close("(", UP)) or (mark == "]" and close("[", DOWN)):
            pass
        else:
            escaped = len(mark) == 2 and mark[0] == "\\"
            pieces.append([mark[1] if escaped else mark, 1.0])
    for bracket, factor in (("(", UP), ("[", DOWN)):
        while close(bracket, factor):
            pass
    return _joined(pieces) or [("", 1.0)]


def plain(text: str) -> str:
    """The prompt without its marks: what its words are."""
    return _BREAK.sub(" ", "".join(piece for piece, _ in parse(text)))


def rows(tokenizer: Tokenizer, texts: Sequence[str]) -> Marked:
    """Prompts -> rows of token ids with weights; all prompts get as many rows as the longest.

    A tokenizer that does not read in rows (`Tokenizer.in_rows`) gives one, cut at its end.
    """
    room = tokenizer.max_length - 2
    split = [_cut(tokenizer, text, room) for text in texts]
    count = max(map(len, split))
    shape = (len(split), count, tokenizer.max_length)
    ids, weights = np.zeros(shape, np.int32), np.ones(shape, np.float32)
    for index, parts in enumerate(split):
        for row in range(count):
            part = parts[row] if row < len(parts) else []
            ids[index, row] = tokenizer.row([token for token, _ in part])
            weights[index, row, 1 : 1 + len(part)] = [weight for _, weight in part]
    return Marked(ids, weights, tokenizer.row([])[None])


def _cut(tokenizer: Tokenizer, text: str, room: int) -> list[list[tuple[int, float]]]:
    """A prompt's tokens with their weights, a list a row."""
    sections: list[list[tuple[int, float]]] = [[]]
    for piece, weight in parse(text):
        first, *others = _BREAK.split(piece)
        sections[-1] += [(token, weight) for token in tokenizer.tokenize(first)]
        for part in others:
            sections.append([(token, weight) for token in tokenizer.tokenize(part)])
    if not tokenizer.in_rows:
        return [[token for tokens in sections for token in tokens][:room]]
    return [
        tokens[start : start + room]
        for tokens in sections
        for start in range(0, max(len(tokens), 1), room)
    ]


def _joined(pieces: Sequence[Sequence]) -> list[tuple[str, float]]:
    """Neighbours of equal weight made one."""
    out: list[tuple[str, float]] = []
    for text, weight in pieces:
        if out and out[-1][1] == weight:
            out[-1] = (out[-1][0] + text, weight)
        else:
            out.append((text, weight))
    return out
