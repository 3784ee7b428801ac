"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from mv2_jax.errors import InputError
from mv2_jax.remote import Remote, Stat, place

unfinished: set[Path] = set()
"""Scratch paths of `whole` that are being written."""


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A scratch path beside `path` that takes its place once the block succeeds.

    The block creates a file or a folder there. Where it raises, the scratch is removed and
    whatever stood at `path` stays as it was. The suffix is kept, since writers of video and
    images choose their format by it.

    Raises:
        OSError: the folder cannot be written, or `path` is a folder that is not empty.
    """
    path = Path(path)
    scratch = _scratch(path)
    unfinished.add(scratch)
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)
        unfinished.discard(scratch)


def check(path: str | os.PathLike[str]) -> None:
    """Finds out whether `whole` could put a file at `path`, and leaves no trace.

    Raises:
        OSError: it could not: no such folder, a folder is in the way, permission denied ...
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not path.parent.exists():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))
    scratch = _scratch(path)
    scratch.touch(exist_ok=False)
    scratch.unlink()


def occupied(folder: Path, index: str, replace: bool = False) -> bool:
    """Whether a folder that is to be written takes the place of another, whose `index` is in it.

    Raises:
        InputError: what is there is not to be replaced, or has no `index`.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / index).is_file():
        raise InputError(f"{folder} already exists and has no {index}; choose another folder")
    if not replace:
        raise InputError(f"{folder} already exists; choose another folder, or say --replace")
    return True


def regular(path: str | os.PathLike[str] | Remote) -> None:
    """Raises OSError where `path` is not there, or no file that ends: a device, a pipe ..."""
    if isinstance(path, Remote):
        path.stat()
        return
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))


def read_json(path: str | os.PathLike[str] | Remote) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: it cannot be read, or is a device.
        ValueError: it is no JSON, is nested too deeply, or holds a NUL, which no name may.
    """
    regular(path)
    text = place(path).read_bytes().decode()
    if "\\u0000" in text or "\0" in text:
        raise ValueError("a NUL is in it")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def sha256(path: str | os.PathLike[str] | Remote) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. Raises OSError as `regular`."""
    regular(path)
    with place(path).open("rb") as file:
        return hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()


_sums: dict[tuple[Any, ...], str] = {}


def known_sha256(path: str | os.PathLike[str] | Remote) -> str:
    """`sha256` that looks once, as long as the file's size and its time of change stay."""
    about = place(path).stat()
    when = about.stamp if isinstance(about, Stat) else about.st_mtime_ns
    if not when:
        return sha256(path)
    key = (str(path), about.st_size, when)
    if key not in _sums:
        _sums[key] = sha256(path)
    return _sums[key]


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
