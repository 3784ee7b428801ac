"""Prompts that change: from frame to frame, and from step to step.

    0: a red ball, 16: a blue ball      from frame to frame, in straight lines between those named
    a [cube:ball:0.4] on grass          "cube" in the first 40% of the steps, then "ball"
    a [cube:4]                          nothing in the first four steps, then "cube"
    a [cube::0.4]                       "cube" at first, then nothing
    a [red|blue] ball                   "red" and "blue" by turns

The first is called prompt travel by AnimateDiff's users; it may also stand on lines of its own,
with lines before and after that go for all frames. The others are the Stable Diffusion web UI's,
by its rules: they nest, numbers with a point are parts of the chain and others are steps, and of a
step that is counted from 0 the number itself is still before the change.

What other tools would do and this does not (`strange`) is taken out of the words, to be named in a
warning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_KEY = re.compile(r'\s*"?(\d{1,6})"?\s*:(?!\))')
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)")
_STRANGE = re.compile(
    r"<(?:lora|lyco|hypernet):[^<>]*>|\bembedding:[\w./\\-]+(?::[\d.]+(?=\)))?|\bAND\b"
)


class Timed(NamedTuple):
    """A prompt as the texts that it is made of, and how much each counts.

    shares: float32 [S, T, K]: at each step (one where none differ) and frame (likewise), of each
        text; over the K texts they sum to one.
    """

    texts: tuple[str, ...]
    shares: np.ndarray


def is_one(prompt: str) -> bool:
    """Whether a prompt is one text throughout, in one piece."""
    made = timed(prompt, 100, 100)
    return len(made.texts) == 1 and "BREAK" not in prompt


def timed(prompt: str, steps: int = 1, frames: int = 1) -> Timed:
    """A prompt over so many steps and frames.

    Words of `strange` are taken out. Raises nothing: whatever has no such meaning is text.
    """
    texts: dict[str, int] = {}
    table = []
    for text in (keys := travel(without_strange(prompt))).values():
        table.append([texts.setdefault(words, len(texts)) for words in by_step(text, steps)])
    chosen = np.asarray(table)  # [keys, S]
    weights = _between(list(keys), frames if len(keys) > 1 else 1)
    shares = np.zeros((chosen.shape[1], len(weights), len(texts)), np.float32)
    for key, row in enumerate(chosen):
        for step, which in enumerate(row):
            shares[step, :, which] += weights[:, key]
    said = np.asarray(shares.any((0, 1)))
    shares = shares[:, :, said]
    if (shares == shares[:1]).all():
        shares = shares[:1]
    return Timed(tuple(text for text, here in zip(texts, said) if here), shares)


def padded(prompts: Sequence[Timed]) -> np.ndarray:
    """The shares [B, S, T, K] of several prompts, all with as many steps, frames and texts."""
    sizes = np.max([prompt.shares.shape for prompt in prompts], axis=0)
    made = np.zeros((len(prompts), *sizes), np.float32)
    for row, prompt in enumerate(prompts):
        made[row, ..., : prompt.shares.shape[-1]] = prompt.shares
    return made


def travel(prompt: str) -> dict[int, str]:
    """{frame: text} of a prompt that names frames: 0, or two of them; {0: prompt} of others."""
    lines = prompt.splitlines() or [""]
    starts = [bool(_KEY.match(line)) for line in lines]
    if not any(starts):
        return {0: prompt}
    first, last = starts.index(True), len(starts) - 1 - starts[::-1].index(True)
    head, body, tail = lines[:first], lines[first : last + 1], lines[last + 1 :]
    made: dict[int, str] = {}
    frame = 0
    for piece in _pieces("\n".join(body)):
        match = _KEY.match(piece)
        if match:
            frame = int(match[1])
            made[frame] = piece[match.end() :].strip().strip('"')
        else:
            made[frame] += f", {piece.strip()}"
    if len(made) < 2 and 0 not in made:
        return {0: prompt}  # "2001: a space odyssey"
    whole = {
        frame: ", ".join(filter(None, (part.strip(" ,") for part in (*head, text, *tail))))
        for frame, text in made.items()
    }
    return dict(sorted(whole.items()))


def _pieces(text: str) -> list[str]:
    """A text cut where a named frame begins behind a comma, a semicolon or a line's end, outside
    of brackets."""
    made, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if letter in ",;\n" and depth <= 0 and _KEY.match(text, at + 1):
            made.append(text[start:at])
            start = at + 1
    return [*made, text[start:]]


def _between(keys: Sequence[int], frames: int) -> np.ndarray:
    """What each of the named frames weighs at every frame, float32 [frames, keys]."""
    basis = np.eye(len(keys))
    at = np.arange(frames)
    return np.stack([np.interp(at, keys, row) for row in basis], axis=1).astype(np.float32)


def by_step(text: str, steps: int) -> list[str]:
    """The text at each of so many steps."""
    ends, tree = {steps}, _parse(text, steps)
    _collect(tree, steps, ends)
    order = sorted(ends)
    at = [next((end for end in order if step <= end), order[-1]) for step in range(steps)]
    said = {end: _say(tree, end) for end in set(at)}
    return [said[end] for end in at]


class _Change(NamedTuple):
    before: list
    after: list
    when: int


class _Turns(NamedTuple):
    options: list


def _parse(text: str, steps: int) -> list:
    """A text as a list of letters, `_Change`s and `_Turns`."""
    made: list = []
    at = 0
    while at < len(text):
        if text[at] == "\\":
            made.append(text[at : at + 2])
            at += 2
            continue
        end = _closing(text, at) if text[at] == "[" else None
        found = None if end is None else _bracket(text[at + 1 : end], steps)
        if end is None or found is None:
            found, end = text[at], at
        made.append(found)
        at = end + 1
    return made


def _closing(text: str, at: int) -> int | None:
    """Where the bracket that opens at `at` closes, or None."""
    depth = 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        else:
            depth += (text[at] == "[") - (text[at] == "]")
            if depth == 0:
                return at
        at += 1
    return None


def _bracket(inside: str, steps: int) -> _Change | _Turns | None:
    """What square brackets around a text mean; None where they weigh it (`text.emphasis`)."""
    parts, turns = _split(inside, ":"), _split(inside, "|")
    if len(parts) not in (2, 3) or not _NUMBER.fullmatch(parts[-1]):
        return _Turns([_parse(part, steps) for part in turns]) if len(turns) > 1 else None
    number = parts[-1].strip()
    when = float(number) * (steps if "." in number else 1)
    before = parts[0] if len(parts) == 3 else ""
    return _Change(_parse(before, steps), _parse(parts[-2], steps), min(steps, int(when)))


def _split(text: str, mark: str) -> list[str]:
    """A text cut at a mark outside of brackets of its own."""
    made, depth, start, at = [], 0, 0, 0
    while at < len(text):
        letter = text[at]
        if letter == "\\":
            at += 1
        elif letter == mark and depth <= 0:
            made.append(text[start:at])
            start = at + 1
        else:
            depth += (letter in "([") - (letter in ")]")
        at += 1
    return [*made, text[start:]]


def _collect(tree: list, steps: int, ends: set[int]) -> None:
    """Adds the steps after which something changes."""
    for part in tree:
        if isinstance(part, _Change):
            ends.add(part.when)
            _collect(part.before, steps, ends)
            _collect(part.after, steps, ends)
        elif isinstance(part, _Turns):
            ends.update(range(1, steps + 1))
            for option in part.options:
                _collect(option, steps, ends)


def _say(tree: list, step: int) -> str:
    """The text up to a step, counted from 1."""
    made = []
    for part in tree:
        if isinstance(part, _Change):
            part = _say(part.before if step <= part.when else part.after, step)
        elif isinstance(part, _Turns):
            part = _say(part.options[(step - 1) % len(part.options)], step)
        made.append(part)
    return "".join(made)


def strange(prompt: str) -> list[str]:
    """What a prompt asks for in the words of other tools that is not done here, each once."""
    return list(dict.fromkeys(match[0] for match in _STRANGE.finditer(prompt)))


def without_strange(prompt: str) -> str:
    """The prompt without those words; AND becomes a comma."""
    if not _STRANGE.search(prompt):
        return prompt
    return _STRANGE.sub(lambda match: "," if match[0] == "AND" else "", prompt).strip()
