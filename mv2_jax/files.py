"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)


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


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
