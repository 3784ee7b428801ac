"""Files that are not on this machine: in a bucket, by their URL.

    folder = place("gs://bucket/cascade")    # a Remote; place("cascade") is a Path
    (folder / "cascade.json").read_bytes()

fsspec does the talking; each kind of bucket wants its own package (gcsfs for gs://, s3fs for s3://).
A `Remote` has what this package asks of a `Path`, and no more.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mv2_jax.errors import InputError


def place(path: str | os.PathLike[str] | Remote) -> Path | Remote:
    """A `Path`, or a `Remote` for what looks like a URL."""
    if isinstance(path, Remote):
        return path
    return Remote(str(path)) if "://" in str(path) else Path(path)


@dataclass(frozen=True)
class Stat:
    """A file's size in bytes, and whatever changes with its content where the bucket knows it."""

    st_size: int
    stamp: str = ""


@dataclass(frozen=True)
class Remote:
    """A file or folder by its URL.

    Methods raise OSError where the bucket cannot give or take the file, and InputError where
    there is no way to ask it: no such kind of URL, or its package is not installed.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return self.url.rstrip("/").rpartition("/")[2]

    def absolute(self) -> Remote:
        return self

    def is_file(self) -> bool:
        with self._asked() as (system, path):
            return system.isfile(path)

    def stat(self) -> Stat:
        with self._asked() as (system, path):
            about = system.info(path)
        marks = (about.get(key) for key in ("ETag", "etag", "mtime", "updated"))
        return Stat(int(about["size"]), str(next(filter(None, marks), "")))

    def open(self, mode: str = "rb") -> IO[bytes]:
        with self._asked() as (system, path):
            return system.open(path, mode)

    def read_bytes(self) -> bytes:
        with self._asked() as (system, path):
            return system.cat_file(path)

    def read_spans(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes from each (begin, end), several at a time."""
        with self._asked() as (system, path):
            begins, ends = zip(*spans)
            paths = [path] * len(spans)
            found = system.cat_ranges(paths, list(begins), list(ends), on_error="raise")
        return [bytes(part) for part in found]

    def write_bytes(self, content: bytes) -> None:
        """Writes the file, which appears whole: beside it first where the system is a disk's."""
        with self._asked() as (system, path):
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            if self.url.startswith(("file://", "local://")):
                scratch = f"{path}.{uuid.uuid4().hex[:8]}.part"
                system.pipe_file(scratch, content)
                os.replace(scratch, path)
            else:
                system.pipe_file(path, content)

    def unlink(self) -> None:
        with self._asked() as (system, path):
            system.rm_file(path)

    @contextmanager
    def _asked(self) -> Iterator[tuple[Any, str]]:
        """The file system, and the path within it."""
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise InputError(f"{self.url}: install fsspec (mv2-jax[bucket])") from None
        try:
            system, path = url_to_fs(self.url)
        except ImportError as error:
            raise InputError(f"{self.url}: {error} (mv2-jax[bucket])") from None
        except ValueError as error:
            raise InputError(f"{self.url}: {error}") from None
        try:
            yield system, path
        except OSError:
            raise
        except Exception as error:  # each package has exceptions of its own
            raise OSError(0, f"{type(error).__name__}: {error}", self.url) from None
