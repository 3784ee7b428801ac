"""What a file is by its first bytes: which container of tensors, or what a download left."""

from __future__ import annotations

import re
from pathlib import Path


def other(path: Path) -> str | None:
    """What a file is by its first bytes, where that is no container of tensors."""
    with open(path, "rb") as file:
        start = file.read(256)
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer and not the file itself; fetch it with git lfs pull"
    if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
        return "a web page: a download that wanted a login, or a link to a page"
    if start.startswith(b"GGUF"):
        return "a GGUF file, whose quantised weights are not read"
    if path.suffix == ".msgpack":
        return "Flax's msgpack, which is not read; most repositories hold a .safetensors too"
    return None


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as a safetensors file does: a length, and then a JSON object."""
    with open(path, "rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and 0 < length <= path.stat().st_size - 8


def is_pickle(path: Path) -> bool:
    """Whether a file begins as torch's: a zip archive, or a bare pickle."""
    with open(path, "rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x04")
