"""Makes mv2_jax/text/data/kinds.npz: what kind of word a word is, and a short vector of each.

    python benchmarks/word_kinds.py --glove FILE --wordnet FOLDER

Kinds come from WordNet 3.1 (a word's commonest sense), vectors from GloVe 6B of 100 numbers
(J. Pennington, R. Socher, C. Manning, 2014): the two largest directions, which say how common a
word is, are left out (J. Mu, P. Viswanath, 2018), the next 32 are kept in 8 bits.

FILE is GloVe's own text ("word number ..." a line, commonest words first), FOLDER has WordNet's
index.sense, data.noun and data.verb.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import ImageColor

from mv2_jax.text import meaning
from mv2_jax.toybox import captions

COUNT, FURTHER, WIDTH = 12_000, 60_000, 32
# WordNet's files of senses by their numbers (lexnames(5WN)) that tell the kind alone.
THING = {5, 6, 8, 13, 18, 20, 25, 27}  # animal artifact body food person plant shape substance
SCENE = {15, 17, 19, 28}  # location object phenomenon time
MOTION = {29, 30, 33, 34, 35, 36, 38, 43}  # verbs of body change contest eating touch making motion
ADJECTIVES = {0, 1, 2, 44}  # and adverbs
# Nouns below these are of the kind, whichever file they stand in.
BELOW = {"colour": {"color", "colour"}, "scene": {"vegetation", "way", "room", "area", "weather"},
         "thing": {"imaginary_being", "spiritual_being"}}  # fmt: skip


class WordNet:
    """Senses of single words: (file's number, names of it and of what it is a kind of, count)."""

    def __init__(self, folder: Path) -> None:
        self._synsets = {pos: _synsets(folder / f"data.{pos}") for pos in ("noun", "verb")}
        self.senses: dict[str, list[tuple[int, set[str], int]]] = defaultdict(list)
        for line in (folder / "index.sense").read_text().splitlines():
            key, offset, _, count = line.split()
            word, (kind, number) = key.split("%")[0], key.split("%")[1].split(":")[:2]
            if word.isalpha():
                above = self._above({"1": "noun", "2": "verb"}.get(kind, ""), offset)
                self.senses[word].append((int(number), above, int(count)))

    def _above(self, pos: str, offset: str) -> set[str]:
        names: set[str] = set()
        while pos and offset:
            own, offset = self._synsets[pos][offset]
            names.update(own)
        return names


def _synsets(path: Path) -> dict[str, tuple[list[str], str]]:
    """{offset: (its words, the offset of what it is a kind of, or "")} of a data file."""
    made = {}
    for line in path.read_text().splitlines():
        if line.startswith(" "):
            continue
        fields = line.split(" | ")[0].split()
        words = int(fields[3], 16)
        at = 4 + 2 * words
        pointers = [fields[at + 1 + 4 * k : at + 5 + 4 * k] for k in range(int(fields[at]))]
        above = [offset for mark, offset, _, _ in pointers if mark in ("@", "@i")]
        made[fields[0]] = [w.lower() for w in fields[4:at:2]], (above or [""])[0]
    return made


def kind_of(word: str, senses: list[tuple[int, set[str], int]]) -> str | None:
    """The kind of a word's commonest sense that has one, unless it is commonest as an adjective;
    of a colour's name, colour, but for what is better known as an animal, a food or a plant."""
    if not senses:
        return None
    senses = sorted(senses, key=lambda sense: -sense[2])
    number, above, count = senses[0]
    coloured = any(names & BELOW["colour"] for _, names, _ in senses)
    living = number in (5, 13, 20) and count
    if above & BELOW["colour"] or (coloured and word in ImageColor.colormap and not living):
        return "colour"
    if number in ADJECTIVES:
        return None
    kinds = {**dict.fromkeys(THING, "thing"), **dict.fromkeys(SCENE, "scene")}
    kinds.update(dict.fromkeys(MOTION, "motion"))
    for number, above, _ in senses[:3]:
        below = [kind for kind in ("scene", "thing") if above & BELOW[kind]]
        if below or number in kinds:
            return below[0] if below else kinds[number]
    return None


ENDINGS = (("ies", "y"), ("ied", "y"), ("ing", ""), ("ing", "e"), ("ed", ""), ("ed", "e"),
           ("es", ""), ("s", ""))  # fmt: skip


def bases(word: str) -> list[str]:
    """What the word may be a form of: "running": runn, run, runne."""
    made = []
    for ending, instead in ENDINGS:
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 1:
            made += [stem + instead, stem[:-1]] if stem[-2:-1] == stem[-1:] else [stem + instead]
    return made


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--glove", type=Path, required=True)
    parser.add_argument("--wordnet", type=Path, required=True)
    args = parser.parse_args()
    net = WordNet(args.wordnet)
    # GloVe's commonest words, and forms further down that name what pictures show.
    rows, words = [], []
    with args.glove.open(encoding="utf-8") as lines:
        for place, line in enumerate(lines):
            word, *numbers = line.split(" ")
            if place >= FURTHER or not re.fullmatch("[a-z]{2,}", word):
                continue
            kind = _kind(word, net)
            if (
                place < COUNT
                or kind in ("thing", "colour", "motion")
                or word in captions.VOCABULARY
            ):
                words.append(word)
                rows.append((kind, np.array(numbers, np.float32)))
    vectors = np.stack([numbers for _, numbers in rows])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    centred = vectors - vectors.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][2 : 2 + WIDTH]
    short = centred @ axes.T
    short /= np.linalg.norm(short, axis=1, keepdims=True)
    codes = [meaning.KINDS.index(kind) + 1 if kind else 0 for kind, _ in rows]
    np.savez_compressed(
        meaning.TABLE,
        words=np.frombuffer("\n".join(words).encode(), np.uint8),
        kinds=np.array(codes, np.uint8),
        vectors=np.round(short * 127).astype(np.int8),
    )
    print(f"{meaning.TABLE}: {len(words)} words, {meaning.TABLE.stat().st_size / 1e6:.2f} MB")


def _kind(word: str, net: WordNet) -> str | None:
    """The kind of the word, or of the word that it is commoner as a form of."""
    own = sum(count for *_, count in net.senses.get(word, []))
    for form in bases(word):
        senses = net.senses.get(form, [])
        if word.endswith(("ing", "ed")):  # forms of verbs alone, whatever noun is made of them
            senses = [sense for sense in senses if 29 <= sense[0] <= 43]
        if senses and sum(count for *_, count in senses) >= own:
            return kind_of(form, senses)
    return kind_of(word, net.senses.get(word, []))


if __name__ == "__main__":
    main()
