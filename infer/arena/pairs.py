"""Which videos of two folders are of one prompt."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mv2_jax.errors import InputError
from mv2_jax.infer.outputs import CLIPS

SUFFIXES = (".mp4", ".webm", ".mov", ".m4v", ".mkv")


class Clip(NamedTuple):
    """A video of a folder. prompt, seed: from its sidecar; None where there is none."""

    path: Path
    prompt: str | None
    seed: int | None

    @property
    def shown(self) -> str:
        """What it is of, for people: its prompt, or its name."""
        return self.prompt or self.path.stem.replace("_", " ")


def read(folder: Path) -> list[Clip]:
    """The videos right in a folder, by name. A sidecar of `mv2 generate`, or any JSON file of
    the same name with a "prompt" (and a "seed"), says what one is of.

    Raises:
        InputError: no such folder, or no video in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    names = {path.stem for path in files}  # `--stages` keeps NAME.keyframes.mp4 beside NAME.mp4
    stages = {f"{name}.{stage}" for name in names for stage in CLIPS}
    files = [path for path in files if path.stem not in stages]
    if not files:
        raise InputError(f"{folder}: it holds no video ({', '.join(SUFFIXES)})")
    return [Clip(path, *_said(path.with_suffix(".json"))) for path in files]


def names(folders: Sequence[Path]) -> list[str]:
    """A name a folder, told apart by the folders above where the last ones are equal.

    Raises:
        InputError: a folder is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    twice = next((str(f) for f, p in zip(folders, parts) if parts.count(p) > 1), None)
    if twice:
        raise InputError(f"{twice} is given twice")
    deep = 1
    while len({part[-deep:] for part in parts}) < len(parts):
        deep += 1
    return ["/".join(part[-deep:]) for part in parts]


def match(first: Sequence[Clip], second: Sequence[Clip]) -> list[tuple[Clip, Clip]]:
    """Pairs of two folders' clips: of equal prompts, and among these of equal seeds, then in order;
    then of equal file names, or of a prompt and a file that is named after it."""
    pairs: list[tuple[Clip, Clip]] = []
    left, right = list(first), list(second)
    ways = ((_by_seed, _by_seed), (_by_prompt, _by_prompt), (_by_name, _by_name),
            (_by_prompt, _by_name), (_by_name, _by_prompt))  # fmt: skip
    for mine, theirs in ways:
        places = defaultdict(list)
        for clip in right:
            places[theirs(clip)].append(clip)
        named = _by_name in (mine, theirs)
        for clip in list(left):
            there = places[mine(clip)] if mine(clip) is not None else []
            # Two prompts that differ are two prompts, whatever the files are called.
            other = next((o for o in there if not (named and clip.prompt and o.prompt)), None)
            if other is not None:
                there.remove(other)
                pairs.append((clip, other))
                left.remove(clip)
                right.remove(other)
    order = {clip.path: number for number, clip in enumerate(first)}
    return sorted(pairs, key=lambda pair: order[pair[0].path])


def _plain(text: str) -> str:
    """Words alone: how prompts are spaced, written and made into file names does not matter."""
    return " ".join(re.findall(r"\w+", text.lower().replace("_", " ")))


def _by_seed(clip: Clip) -> object:
    both = clip.prompt is not None and clip.seed is not None
    return (_plain(clip.prompt or ""), clip.seed) if both else None


def _by_prompt(clip: Clip) -> object:
    return _plain(clip.prompt) if clip.prompt is not None else None


def _by_name(clip: Clip) -> object:
    return _plain(clip.path.stem)


def _said(sidecar: Path) -> tuple[str | None, int | None]:
    try:
        said = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, None
    said = said if isinstance(said, dict) else {}
    prompt, seed = said.get("prompt"), said.get("seed")
    return (
        prompt if isinstance(prompt, str) and prompt.strip() else None,
        seed if isinstance(seed, int) and not isinstance(seed, bool) else None,
    )
