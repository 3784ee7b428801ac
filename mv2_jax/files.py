"""Files that appear whole or not at all."""

from __future__ import annotations

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
    scratch = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
