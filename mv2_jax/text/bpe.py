"""CLIP's byte-pair tokenizer (arXiv 2103.00020; the method is arXiv 1508.07909).

The vocabulary is the file that CLIP ships (see data/SOURCE.txt). Text is normalised as
transformers' CLIPTokenizer does it (NFC, white space collapsed, lower case), so that ids agree
with the public checkpoints' own tokenizers; OpenAI's first code also repaired mis-decoded text
and HTML entities, which those tokenizers do not.
"""

from __future__ import annotations

import functools
import gzip
import importlib.resources
import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import regex

from mv2_jax.lookup import one_of

START = "<|startoftext|>"
END = "<|endoftext|>"
WORD_END = "</w>"
_MERGES = 49152 - 256 - 2  # the file lists more pairs than CLIP's vocabulary took
_PADDINGS = ("eos", "zero")
VOCABULARY = 49408

_SPECIAL = regex.compile(r"(<\|startoftext\|>|<\|endoftext\|>)")
# "<|ENDOFTEXT|>" becomes a literal that is no token: cut off from its neighbours, then in three.
_PIECE = regex.compile(_SPECIAL.pattern + r"|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")


@functools.cache
def _byte_letters() -> tuple[str, ...]:
    """One printable letter for each byte value: itself where it prints, else from U+0100 on."""
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printing else next(spare)) for byte in range(256))


@functools.cache
def merges() -> tuple[tuple[str, str], ...]:
    """The 48,894 pairs that CLIP joins, the most eager first."""
    source = importlib.resources.files("mv2_jax.text") / "data" / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")[1 : _MERGES + 1]
    return tuple((left, right) for left, right in (line.split() for line in lines))


@functools.cache
def vocabulary() -> dict[str, int]:
    """The 49,408 tokens and their ids: bytes, word-ending bytes, merged pairs, start, end."""
    # The file numbers the bytes that print first, then the others.
    letters = sorted(_byte_letters(), key=ord)
    tokens = [*letters, *(letter + WORD_END for letter in letters)]
    tokens += [left + right for left, right in merges()]
    return {token: i for i, token in enumerate([*tokens, START, END])}


@functools.cache
def _ranks() -> dict[tuple[str, str], int]:
    return {pair: rank for rank, pair in enumerate(merges())}


def _join(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """`symbols` with every occurrence of `pair`, from the left, made one symbol."""
    out: list[str] = []
    i = 0
    while i < len(symbols):
        if i + 1 < len(symbols) and (symbols[i], symbols[i + 1]) == pair:
            out.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return out


@functools.lru_cache(maxsize=65536)
def _word_ids(word: str) -> tuple[int, ...]:
    """Token ids of one piece of text: its bytes, joined pair by pair in order of rank."""
    symbols = [_byte_letters()[byte] for byte in word.encode("utf-8")]
    symbols[-1] += WORD_END
    ranks = _ranks()
    while len(symbols) > 1:
        best = min(itertools.pairwise(symbols), key=lambda pair: ranks.get(pair, _MERGES))
        if best not in ranks:
            break
        symbols = _join(symbols, best)
    return tuple(vocabulary()[symbol] for symbol in symbols)


def _any_of(names: Iterable[str]) -> regex.Pattern | None:
    """What finds any of these names where it is no part of a longer word; the longest first."""
    found = sorted(names, key=len, reverse=True)
    if not found:
        return None
    # A name may begin or end with what is no letter, such as <cat-toy>.
    before, after = r"(?<![\w])", r"(?![\w])"
    words = [
        (before if name[0].isalnum() or name[0] == "_" else "")
        + regex.escape(name)
        + (after if name[-1].isalnum() or name[-1] == "_" else "")
        for name in found
    ]
    return regex.compile(rf"(?:(?<![\w])embedding:)?({'|'.join(words)})", regex.IGNORECASE)


def _normalise(text: str) -> str:
    text = regex.sub(r"\s+", " ", unicodedata.normalize("NFC", text))
    # Letter by letter: Python's own lower() looks at a Greek sigma's neighbours, theirs does not.
    return "".join(letter.lower() for letter in text)


class Embedding(NamedTuple):
    """A word of one's own (textual inversion, arXiv 2208.01618): rows of the table of tokens.

    name: how prompts call it. vectors: how many tokens it stands for, after CLIP's own and those of
    the embeddings before it. stages: whose text encoders have it; none means all.
    """

    name: str
    vectors: int
    stages: tuple[str, ...] = ()


class CLIPTokenizer:
    """CLIP's tokenizer: 77 ids a prompt, start and end tokens among them.

    An embedding's name stands for its own tokens wherever it is a word, in whatever case, and with
    `embedding:` before it, as ComfyUI has it.

    Args:
        max_length: ids in a row; longer prompts lose their tail, the end token stays.
        padding: "eos" repeats the end token (CLIP ViT-L, so SD1.5 and SDXL's first encoder);
            "zero" pads with id 0 (OpenCLIP ViT-H and bigG, so SD2 and SDXL's second encoder).
        embeddings: what the text encoders know beside CLIP's vocabulary.
    """

    vocab_size = VOCABULARY  # of one without embeddings
    bos_token_id = 49406
    eos_token_id = 49407
    in_rows = True

    def __init__(
        self, max_length: int = 77, padding: str = "eos", embeddings: Sequence[Embedding] = ()
    ):
        one_of(padding, _PADDINGS, "padding")
        if max_length < 2:
            raise ValueError(f"max_length {max_length} leaves no room for start and end tokens")
        self.max_length = max_length
        self.padding = padding
        self.embeddings = tuple(embeddings)
        self._added: dict[str, range] = {}
        self.vocab_size = VOCABULARY
        for name, vectors, _ in self.embeddings:
            ids = range(self.vocab_size, self.vocab_size + vectors)
            self._added[name.casefold()] = ids
            self.vocab_size = ids.stop
        self._names = _any_of(name for name, _, _ in self.embeddings)

    def of_stage(self, stage: str) -> CLIPTokenizer:
        """The tokenizer with those embeddings alone that a stage's text encoders have."""
        own = [each for each in self.embeddings if not each.stages or stage in each.stages]
        return CLIPTokenizer(self.max_length, self.padding, own)

    def named(self, text: str) -> str:
        """The text without `embedding:` before the names of its embeddings."""
        return self._names.sub(r"\1", text) if self._names else text

    def tokenize(self, text: str) -> list[int]:
        """Ids of `text` alone: no start, no end, no limit."""
        if not self._names:
            return self._own(text)
        ids: list[int] = []
        for index, part in enumerate(self._names.split(text)):
            ids.extend(self._added[part.casefold()] if index % 2 else self._own(part))
        return ids

    def _own(self, text: str) -> list[int]:
        """Ids of `text` in CLIP's vocabulary."""
        ids: list[int] = []
        for part in _SPECIAL.split(text):
            if part in (START, END):
                ids.append(vocabulary()[part])
                continue
            for piece in _PIECE.finditer(_normalise(part)):
                word = piece[0]
                for sub in ("<|", word[2:-2], "|>") if word in (START, END) else (word,):
                    ids.extend(_word_ids(sub))
        return ids

    def row(self, ids: list[int]) -> np.ndarray:
        """int32 [max_length] of ids, at most max_length - 2: start, ids, end, padding."""
        pad = self.eos_token_id if self.padding == "eos" else 0
        row = np.full(self.max_length, pad, np.int32)
        row[: len(ids) + 2] = [self.bos_token_id, *ids, self.eos_token_id]
        return row

    def encode(self, texts: list[str]) -> np.ndarray:
        """Prompts -> int32 [B, max_length]."""
        rows = [self.row(self.tokenize(text)[: self.max_length - 2]) for text in texts]
        return np.asarray(rows, np.int32).reshape(-1, self.max_length)

    def unknown(self, text: str) -> list[str]:
        """Always empty: bytes are tokens, so CLIP can spell every word."""
        return []

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` takes."""
        data = {"class": "CLIPTokenizer", "max_length": self.max_length, "padding": self.padding}
        if self.embeddings:
            data["embeddings"] = [
                {"name": name, "vectors": vectors, "stages": list(stages)}
                for name, vectors, stages in self.embeddings
            ]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CLIPTokenizer:
        """Inverse of `to_json`."""
        held = [
            Embedding(str(each["name"]), int(each["vectors"]), tuple(each["stages"]))
            for each in data.get("embeddings", ())
        ]
        return cls(data["max_length"], data["padding"], held)
