"""ArrayRecord files of tf.train.Examples, each with an encoded clip or picture and its captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from mv2_jax.errors import InputError
from mv2_jax.train import needs
from mv2_jax.train.media import paths
from mv2_jax.train.media.decode import take
from mv2_jax.train.media.example import Value, parse
from mv2_jax.train.media.records import (
    CAPTION_KEYS,
    Content,
    Frames,
    Records,
    picked,
    root_of,
    said,
)
from mv2_jax.train.media.tars import tars_of

ENDINGS = (".array_record", ".arrayrecord")
MEDIA_KEYS = (
    "video", "mp4", "webm", "image", "jpg", "jpeg", "png", "webp", "media", "clip",
    "video/encoded", "image/encoded", "encoded", "bytes",
)  # fmt: skip
ARRAY_RECORD = {"array-record": "array_record"}


class ArrayRecords(Records):
    """The ArrayRecord files of `data.root`: a folder, a file, or a pattern.

    `data.file_key` and `data.caption_key` name the features, where they have unusual names.

    Raises:
        InputError: no file, or records that are something else.
    """

    settings = ("split", "file_key", "caption_key")

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__(data)
        needs.check("data.source=array_record", ARRAY_RECORD, "data")
        self.root = root_of(data, "a folder of ArrayRecord files")
        if paths.remote(self.root) and not self.root.startswith("gs://"):
            raise InputError(
                f"data.root: ArrayRecord files are read here or from gs://: {self.root}"
            )
        self.files = tars_of(self.root, ENDINGS)
        # TFDS names files NAME-SPLIT.array_record-00000-of-00001.
        split = f"-{data.get('split', 'train')}.array_record"
        self.files = {p: n for p, n in self.files.items() if split in p} or self.files
        self.source = opened(list(self.files))
        self._row = lru_cache(maxsize=64)(self._parsed)
        self.media, self.words = self._keys(self._row(0) if len(self) else {})

    def __len__(self) -> int:
        return len(self.source)

    def facts(self) -> Mapping[str, Any]:
        return {"array_record": [list(i) for i in self.files.items()], "key": self.media}

    def name(self, number: int) -> str:
        return f"{self.root}[{number}]"

    def content(self, number: int) -> Content:
        held = self._row(number).get(self.media)
        if not isinstance(held, list) or not held:
            raise InputError(f"the record has no bytes under {self.media!r}")
        if len(held) == 1:
            return held[0]
        # Frames of their own, as TFDS keeps Video; their pace is taken to be what is asked for.
        frames = [take(frame, [0.0])[0] for frame in held]
        return Frames(np.stack(frames), self.data["fps"] or 8.0)

    def captions(self, number: int) -> Sequence[str]:
        return said(self._row(number).get(self.words)) if self.words else ()

    def _parsed(self, number: int) -> dict[str, Value]:
        try:
            return parse(self.source[number])
        except ValueError as error:
            raise InputError(str(error)) from None

    def _keys(self, row: Mapping[str, Value]) -> tuple[str, str]:
        media = picked(_there(row), str(self.data.get("file_key", "")), MEDIA_KEYS)
        if media is None:
            raise InputError(
                f"data.root: which of {', '.join(row) or 'no features'} of {self.root} is the clip "
                "or picture? Name it: data.file_key"
            )
        words = picked(_there(row), str(self.data.get("caption_key", "")), CAPTION_KEYS)
        return media, words or ""


def _there(row: Mapping[str, Value]) -> dict[str, Any]:
    return {name: True for name, value in row.items() if len(value)}


def opened(files: Sequence[str]) -> Any:
    """ArrayRecord files as one list of records. Raises InputError where they are damaged."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        return ArrayRecordDataSource(list(files))
    except (ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read {files[0]}: {reason}") from None


def write(path: str, records: Sequence[bytes]) -> None:
    """An ArrayRecord file of these records, each of which can be read by itself."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(path, "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
