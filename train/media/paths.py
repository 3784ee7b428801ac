"""Files here or in a bucket: a path, or any address that fsspec takes (gs://, s3://, hf:// ...)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mv2_jax.errors import InputError


def remote(root: str) -> bool:
    return "://" in root


def _system(root: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise InputError(f"{root}: addresses need fsspec: pip install 'mv2-jax[data]'") from None
    try:
        return fsspec.core.url_to_fs(root)
    except (ImportError, ValueError) as error:
        raise InputError(f"{root}: {error}") from None


def listed(root: str) -> dict[str, int]:
    """{path below the folder: bytes} of every file in it, sorted; hidden ones are left out.

    Raises:
        InputError: there is no such folder.
    """
    found = {}
    if remote(root):
        system, base = _system(root)
        try:
            entries = system.find(base, detail=True)
        except (OSError, ValueError) as error:
            raise InputError(f"data.root: cannot list {root}: {error}") from None
        if not entries:
            raise InputError(f"data.root: there is no folder {root}")
        base = base.strip("/")
        for path, entry in entries.items():
            found[path.strip("/")[len(base) :].lstrip("/")] = int(entry.get("size") or 0)
    else:
        if not Path(root).is_dir():
            raise InputError(f"data.root: there is no folder {root}")
        for folder, folders, names in os.walk(root, followlinks=True):
            folders.sort()
            for name in names:
                path = os.path.join(folder, name)
                if os.path.isfile(path):
                    found[os.path.relpath(path, root).replace(os.sep, "/")] = os.path.getsize(path)
    hidden = {path for path in found if any(part.startswith(".") for part in path.split("/"))}
    return {path: found[path] for path in sorted(found.keys() - hidden)}


def top(root: str) -> list[str]:
    """Names of what lies in a folder, not below it. Raises InputError where there is none."""
    try:
        if not remote(root):
            return sorted(os.listdir(root))
        system, base = _system(root)
        return sorted(path.rstrip("/").rpartition("/")[2] for path in system.ls(base, detail=False))
    except (OSError, ValueError) as error:
        raise InputError(f"data.root: cannot list {root}: {error}") from None


def joined(root: str, path: str) -> str:
    return f"{root.rstrip('/')}/{path}" if path else root


def read(path: str, begin: int = 0, size: int | None = None) -> bytes:
    """A file's bytes, or `size` of them from `begin`. Raises OSError or InputError."""
    if remote(path):
        system, name = _system(path)
        return system.cat_file(name, begin or None, None if size is None else begin + size)
    with open(path, "rb") as file:
        file.seek(begin)
        return file.read() if size is None else file.read(size)


def opened(path: str) -> Any:
    """A file to be read, as a binary stream. Raises OSError or InputError."""
    if remote(path):
        system, name = _system(path)
        return system.open(name, "rb")
    return open(path, "rb")
