"""A folder of clips and pictures, with captions beside the files or in one list.

Beside the files: NAME.txt or NAME.caption (a caption a line), or NAME.json with a caption in it, as
img2dataset and video2dataset leave them. In one list: JSON lines, CSV or TSV with a row a file, as
datasets' imagefolder (metadata.jsonl), WebVid (page_dir, videoid, name) and Panda-70M (videoID,
timestamp, caption: several parts of one video) lay them, or kohya's JSON of {file: {"caption"}}.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from mv2_jax.errors import InputError
from mv2_jax.train.media import paths
from mv2_jax.train.media.records import (
    CAPTION_KEYS,
    FILE_KEYS,
    SUFFIXES,
    Content,
    Records,
    picked,
    root_of,
    said,
)

LISTS = (".jsonl", ".csv", ".tsv", ".json")
BESIDE = (".txt", ".caption", ".json")
_REPEATS = re.compile(r"^(\d+)_(.+)$")
csv.field_size_limit(1 << 24)


@dataclass(frozen=True)
class Entry:
    """A file of the folder, and where its captions are: in `captions`, or beside it."""

    path: str
    captions: tuple[str, ...] = ()
    beside: str = ""
    span: tuple[float, float | None] = (0.0, None)


class Folder(Records):
    """Files below `data.root`, a folder or an address.

    `data.captions` names the list of captions, else one in the folder is found by its suffix;
    `data.file_key` and `data.caption_key` its columns, where they have unusual names.
    `data.repeats`: folders named as kohya's (10_dog) are gone through as often as they say, and
    captions of files without one are the rest of the name.

    Raises:
        InputError: no folder, no media in it, or a list that cannot be read.
    """

    settings = ("captions", "file_key", "caption_key", "repeats")

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__(data)
        self.root = root_of(data, "a folder of clips and pictures")
        self.sizes = paths.listed(self.root)
        self.lists = self._lists()
        made = list(self._of_lists()) if self.lists else list(self._beside())
        self.missing = [entry.path for entry in made if entry.path not in self.sizes]
        self.entries = [entry for entry in made if entry.path in self.sizes]
        if not self.entries:
            where = f"{self.lists[0]} lists no file of" if self.lists else "no clips or pictures in"
            hint = f" (such as {self.missing[0]!r})" if self.missing else ""
            raise InputError(
                f"data.root: {where} {self.root}{hint}; looked for {', '.join(SUFFIXES)}"
            )

    def __len__(self) -> int:
        return len(self.entries)

    def facts(self) -> Mapping[str, Any]:
        listed = [[e.path, self.sizes[e.path], *e.span] for e in self.entries]
        lists = [[name, self.sizes.get(name, 0)] for name in self.lists]
        return {"folder": self.root, "files": listed, "lists": lists}

    def name(self, number: int) -> str:
        entry = self.entries[number]
        begin, end = entry.span
        return entry.path if end is None else f"{entry.path} [{begin:g}-{end:g} s]"

    def content(self, number: int) -> Content:
        path = paths.joined(self.root, self.entries[number].path)
        return paths.read(path) if paths.remote(path) else path

    def peek(self, number: int) -> Content:
        path = paths.joined(self.root, self.entries[number].path)
        return paths.opened(path) if paths.remote(path) else path

    def span(self, number: int) -> tuple[float, float | None]:
        return self.entries[number].span

    def captions(self, number: int) -> Sequence[str]:
        entry = self.entries[number]
        if not entry.beside:
            return entry.captions
        text = paths.read(paths.joined(self.root, entry.beside)).decode("utf-8", "replace")
        if not entry.beside.endswith(".json"):
            return said(text.splitlines())
        try:
            row = json.loads(text)
        except ValueError:
            return ()
        if not isinstance(row, dict):
            return ()
        key = picked(row, "", (self.data.get("caption_key") or "", *CAPTION_KEYS))
        return said(row[key]) if key else ()

    def _lists(self) -> list[str]:
        """The list of captions that is named, or those that lie at the top of the folder."""
        named = str(self.data.get("captions", ""))
        if named:
            return [named]
        found = [p for p in self.sizes if p.endswith(LISTS) and "/" not in p]
        stems = {str(PurePosixPath(p).with_suffix("")) for p in self.sizes if p.endswith(SUFFIXES)}
        return [p for p in found if str(PurePosixPath(p).with_suffix("")) not in stems]

    def _beside(self) -> Iterator[Entry]:
        for path in self.sizes:
            if not path.lower().endswith(SUFFIXES):
                continue
            stem = str(PurePosixPath(path).with_suffix(""))
            beside = next((stem + s for s in BESIDE if stem + s in self.sizes), "")
            named = _REPEATS.match(PurePosixPath(path).parent.name)
            if not (self.data.get("repeats") and named):
                yield Entry(path, beside=beside)
                continue
            words = () if beside else said(named[2].replace("_", " "))
            yield from [Entry(path, words, beside)] * int(named[1])

    def _of_lists(self) -> Iterator[Entry]:
        stems: dict[str, str] = {}
        for path in self.sizes:
            if path.lower().endswith(SUFFIXES):
                stems.setdefault(str(PurePosixPath(path).with_suffix("")), path)
                stems.setdefault(PurePosixPath(path).stem, path)
        for name in self.lists:
            for line, row in enumerate(self._rows(name), 1):
                try:
                    yield from self._entries(row, stems)
                except InputError as error:
                    raise InputError(f"{name}, row {line}: {error}") from None

    def _rows(self, name: str) -> Iterator[Mapping[str, Any]]:
        inside = name in self.sizes
        try:
            text = paths.read(paths.joined(self.root, name) if inside else name)
        except OSError as error:
            raise InputError(
                f"data.captions: cannot read {name}: {(error.strerror or 'error').lower()}"
            ) from None
        lines = text.decode("utf-8-sig", "replace")
        if name.endswith((".csv", ".tsv")):
            yield from csv.DictReader(
                io.StringIO(lines), delimiter="\t" if name.endswith(".tsv") else ","
            )
            return
        try:
            if name.endswith(".jsonl"):
                for line in lines.splitlines():
                    if line.strip():
                        yield json.loads(line)
                return
            whole = json.loads(lines)
        except ValueError as error:
            raise InputError(f"data.captions: {name} is damaged: {error}") from None
        if isinstance(whole, dict) and all(isinstance(row, dict) for row in whole.values()):
            # kohya's: {file: {"caption": ...}}
            whole = [{"file_name": file, **row} for file, row in whole.items()]
        if not isinstance(whole, list):
            raise InputError(f"data.captions: {name} is no list of files and captions")
        yield from whole

    def _entries(self, row: Mapping[str, Any], stems: Mapping[str, str]) -> Iterator[Entry]:
        """The files of a row: one, or as many parts of one as it has time stamps."""
        if not isinstance(row, Mapping):
            raise InputError("it is no object with a file and a caption")
        key = picked(row, str(self.data.get("file_key", "")), FILE_KEYS)
        if key is None:
            raise InputError(
                f"which of {', '.join(map(str, row))} is the file? Name it: data.file_key"
            )
        path = str(row[key]).removeprefix("./")
        if row.get("page_dir") and f"{row['page_dir']}/{path}" in stems:
            path = f"{row['page_dir']}/{path}"
        if path not in self.sizes:
            stem = str(PurePosixPath(path).with_suffix("")) if path.endswith(SUFFIXES) else path
            path = stems.get(stem, stems.get(PurePosixPath(stem).name, path))
        rest = {name: value for name, value in row.items() if name != key}
        words = picked(rest, str(self.data.get("caption_key", "")), CAPTION_KEYS)
        captions = row[words] if words else None
        if not row.get("timestamp"):
            yield Entry(path, said(captions))
            return
        spans = _parsed(row["timestamp"])
        spans = spans if spans and isinstance(spans[0], (list, tuple)) else [spans]
        texts = _parsed(captions)
        texts = texts if isinstance(texts, (list, tuple)) else [texts]
        for (begin, end), text in zip(spans, texts):
            yield Entry(path, said(text), span=(_seconds(begin), _seconds(end)))


def _parsed(value: Any) -> Any:
    """A list that a CSV holds as Python's or JSON's text, as a list; other texts as they are."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "(")):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _seconds(value: Any) -> float:
    """Seconds, or "0:01:23.456". Raises InputError."""
    try:
        total = 0.0
        for part in str(value).split(":"):
            total = 60 * total + float(part)
        return total
    except ValueError:
        raise InputError(f"{value!r} is no time stamp, such as 0:01:23.456") from None
