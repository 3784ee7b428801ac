"""What holds people's clips and pictures: `Records`, a numbered list of files with captions.

A kind of storage (a folder, tars, ArrayRecord ...) says how many there are, what each is called,
its captions and its content. Everything else (probing, buckets, clips, crops, order) is the same
for all of them, and in the modules beside this one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import numpy as np

from mv2_jax.errors import InputError

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".y4m", ".gif")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SUFFIXES = (*VIDEOS, *PICTURES)
# What caption files and records call these, in order of preference.
FILE_KEYS = (
    "file_name", "file", "path", "video", "image", "clip", "filename", "media", "video_path",
    "image_path", "videoid", "videoID", "key",
)  # fmt: skip
CAPTION_KEYS = ("caption", "captions", "text", "prompt", "txt", "TEXT", "name", "tags")


@dataclass(frozen=True)
class Frames:
    """Decoded content: uint8 [T, H, W, 3], `fps` frames a second (0: a picture)."""

    pixels: np.ndarray
    fps: float = 0.0


Content = str | bytes | BinaryIO | Frames
"""A file's path, its bytes, the open file, or frames that need no decoding."""


RECORDS = {
    "auto": "mv2_jax.train.media.auto:auto",
    "folder": "mv2_jax.train.media.folder:Folder",
    "tars": "mv2_jax.train.media.tars:Tars",
    "array_record": "mv2_jax.train.media.array_records:ArrayRecords",
    "tfds": "mv2_jax.train.media.tfds:DataSet",
    "datasets": "mv2_jax.train.media.hub:HubSet",
    "synthetic": "mv2_jax.train.media.synthetic:Synthetic",
}
"""Kinds of storage, by the words that `data.source` knows them by."""


class Records(ABC):
    """Files with captions by number.

    Args:
        data: the phase's `data` settings, such as `data.root`.

    Raises:
        InputError: nothing is there, or it cannot be read.
    """

    records: ClassVar[bool] = True  # what `train.source.of` knows them by
    # Names of the `data` settings that this kind alone reads; None: it does not say.
    settings: ClassVar[tuple[str, ...] | None] = None

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """JSON-ready: what changes with the content. What is found by probing is kept under it."""

    @abstractmethod
    def name(self, number: int) -> str:
        """What a person calls it: a path within the source."""

    @abstractmethod
    def captions(self, number: int) -> Sequence[str]:
        """Its captions; empty where it has none."""

    @abstractmethod
    def content(self, number: int) -> Content:
        """The file. Raises InputError or OSError where it cannot be had."""

    def peek(self, number: int) -> Content:
        """`content` for a look at the beginning: of a file that lies elsewhere, it open."""
        return self.content(number)

    def span(self, number: int) -> tuple[float, float | None]:
        """The part of a file that is meant: from and to, in seconds; None: to its end."""
        return 0.0, None


def root_of(data: Mapping[str, Any], what: str) -> str:
    """`data.root`. Raises InputError where it is empty."""
    root = str(data.get("root", ""))
    if not root:
        raise InputError(f"data.root: name {what}, with --set data.root=PATH")
    return root


def said(value: Any) -> tuple[str, ...]:
    """Captions as they stand in a record: a text, bytes, or a list of them; empty ones left out."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or isinstance(value, float):
        return ()
    if not isinstance(value, str):
        return tuple(text for item in value for text in said(item))
    text = " ".join(value.split())
    return (text,) if text else ()


def picked(row: Mapping[str, Any], named: str, usual: Sequence[str]) -> str | None:
    """The key of a record that is named, or the first usual one that it has; None without one.

    Raises:
        InputError: it has no key of that name.
    """
    if named:
        if named not in row:
            raise InputError(f"there is no {named!r} among {', '.join(map(str, row))}")
        return named
    return next((key for key in usual if row.get(key) not in (None, "")), None)
