"""WebDataset tars: files that share a name up to the first dot are a sample (a.mp4, a.txt)."""

from __future__ import annotations

import fnmatch
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from mv2_jax import files
from mv2_jax.errors import InputError
from mv2_jax.infer.cache import user_cache
from mv2_jax.train import processes
from mv2_jax.train.latents import fingerprint
from mv2_jax.train.media import paths
from mv2_jax.train.media.records import (
    CAPTION_KEYS,
    SUFFIXES,
    Content,
    Records,
    picked,
    root_of,
    said,
)

CAPTIONS = ("txt", "caption", "text", "json")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Member:
    """A sample in a tar: where its media and its captions begin, and how long they are."""

    tar: int
    name: str
    begin: int
    size: int
    captions: str = ""
    captions_begin: int = 0
    captions_size: int = 0


class Tars(Records):
    """The tars of `data.root`: a folder of them, one, or a pattern (shard-{0000..0099}.tar, *).

    `data.file_key` and `data.caption_key` are the endings that count, where a sample has several.

    Raises:
        InputError: no tar, one that is compressed or damaged, or no media in them.
    """

    settings = ("file_key", "caption_key")

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__(data)
        self.root = root_of(data, "a folder of tars, or a pattern such as shard-{0000..0099}.tar")
        self.tars = tars_of(self.root)
        self.members = self._kept() or self._read()
        if not self.members:
            raise InputError(f"data.root: no clips or pictures in the tars of {self.root}")

    def __len__(self) -> int:
        return len(self.members)

    def facts(self) -> Mapping[str, Any]:
        keys = [str(self.data.get(key, "")) for key in ("file_key", "caption_key")]
        return {"tars": [list(item) for item in self.tars.items()], "keys": keys}

    def name(self, number: int) -> str:
        member = self.members[number]
        return f"{list(self.tars)[member.tar]}:{member.name}"

    def content(self, number: int) -> Content:
        member = self.members[number]
        return paths.read(list(self.tars)[member.tar], member.begin, member.size)

    def captions(self, number: int) -> Sequence[str]:
        member = self.members[number]
        if not member.captions:
            return ()
        where = (member.captions_begin, member.captions_size)
        text = paths.read(list(self.tars)[member.tar], *where).decode("utf-8", "replace")
        if member.captions != "json":
            return said(text.splitlines())
        try:
            row = json.loads(text)
        except ValueError:
            return ()
        own = str(self.data.get("caption_key", ""))
        key = picked(row, "", (own, *CAPTION_KEYS)) if isinstance(row, dict) else None
        return said(row[key]) if key else ()

    def _read(self) -> list[Member]:
        processes.say(f"listing {len(self.tars)} tars of {self.root}")
        members = [m for n, path in enumerate(self.tars) for m in self._of_tar(n, path)]
        if processes.first():
            self._keep(members)
        return members

    def _of_tar(self, number: int, path: str) -> Iterator[Member]:
        samples: dict[str, dict[str, tarfile.TarInfo]] = {}
        try:
            with paths.opened(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
                for info in tar:
                    folder, _, file = info.name.rpartition("/")
                    stem, dot, ending = file.partition(".")
                    if info.isfile() and dot:
                        key = f"{folder}/{stem}" if folder else stem
                        samples.setdefault(key, {})[ending.lower()] = info
        except (tarfile.TarError, OSError, EOFError) as error:
            raise InputError(
                f"data.root: {path} is no plain tar, or is damaged ({error})"
            ) from None
        wanted = str(self.data.get("file_key", ""))
        for key, held in samples.items():
            endings = [e for e in held if (e == wanted if wanted else f".{e}".endswith(SUFFIXES))]
            if not endings:
                continue
            media, words = held[endings[0]], self._words(held)
            more = (words, held[words].offset_data, held[words].size) if words else ()
            yield Member(number, f"{key}.{endings[0]}", media.offset_data, media.size, *more)

    def _words(self, held: Mapping[str, Any]) -> str:
        """The ending of a sample's captions; "" where it has none."""
        own = str(self.data.get("caption_key", ""))
        return next((ending for ending in (own, *CAPTIONS) if ending in held), "")

    def _place(self) -> Path:
        return user_cache() / "index" / f"tars-{fingerprint(self.facts())}.json"

    def _kept(self) -> list[Member]:
        try:
            return [Member(*row) for row in json.loads(self._place().read_text())]
        except (OSError, ValueError, TypeError):
            return []

    def _keep(self, members: Sequence[Member]) -> None:
        try:
            self._place().parent.mkdir(parents=True, exist_ok=True)
            with files.whole(self._place()) as scratch:
                scratch.write_text(json.dumps([astuple(member) for member in members]))
        except OSError:
            return


def tars_of(root: str, endings: tuple[str, ...] = (".tar",)) -> dict[str, int]:
    """{path: bytes} of the tars (or of files of other endings) that a path or pattern names.

    Raises:
        InputError: there is none.
    """
    folder, _, last = root.rpartition("/")
    if not any(ending in last for ending in endings) and not any(mark in last for mark in "*?{"):
        folder, patterns = (
            root,
            [f"*{ending}" for ending in (*endings, *(f"{each}-*-of-*" for each in endings))],
        )
    else:
        patterns = _expanded(last)
    listed = paths.listed(folder or ".")
    found = {
        paths.joined(folder or ".", path): size
        for path, size in listed.items()
        if any(fnmatch.fnmatch(path, pattern) for pattern in patterns)
    }
    if not found:
        raise InputError(f"data.root: there is no {' or '.join(endings)} file at {root}")
    return found


def _expanded(pattern: str) -> list[str]:
    """shard-{00..02}.tar -> the three names."""
    match = _BRACES.search(pattern)
    if not match:
        return [pattern]
    first, last = match[1], match[2]
    numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return [
        name
        for number in numbers
        for name in _expanded(pattern[: match.start()] + number + pattern[match.end() :])
    ]
