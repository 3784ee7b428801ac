"""Requests a line: `mv2 generate --prompts FILE`, or lines from standard input.

    {"prompt": "a red ball", "seed": 3, "t2i_steps": 30}
    {"prompt": "a blue cube", "image": "cube.png", "out": "cube"}
    a green ring rising by the sea

A line that begins with { is JSON, whose fields are the options of `mv2 generate`; any other is a
prompt. What a line does not say, the command line does. Nothing here imports JAX.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mv2_jax.errors import InputError
from mv2_jax.infer import request as requests
from mv2_jax.infer.choices import CHOICES
from mv2_jax.infer.request import LARGEST_BATCH, Request
from mv2_jax.infer.settings import SETTINGS
from mv2_jax.lookup import nearest
from mv2_jax.numbers import DIFFUSION

STDIN = "-"
_OPTIONS = tuple(option.dest for option in (*SETTINGS, *CHOICES))
_MANY = ("look", "control", "lora")  # options that may stand more than once
FIELDS = ("prompt", "out", "negative", *(f"{stage}_negative" for stage in DIFFUSION), "seed",
          "image", "video", "from", "size", "variations", *_MANY, "tell", "weights",
          *_OPTIONS)  # fmt: skip
"""What a line may say: an option's name, with - or _ between its words."""


@dataclass(frozen=True)
class Line:
    """A line that is not empty; `number` is from 1, `mine` whether this process is to make it."""

    number: int
    content: bytes
    mine: bool = True


@dataclass(frozen=True)
class Asked:
    """What a line asks for: a request, and its files' `name` within the folder."""

    request: Request
    name: str
    random: bool = False  # whether any seed will do


class Lines:
    """Lines of a file, or of standard input, where `take` may find none to be there yet."""

    def __init__(self, path: str, part: tuple[int, int] = (0, 1)) -> None:
        """Raises InputError where the file cannot be read.

        Args:
            part: (i, n): of n processes that share the lines this is the i-th, from 0.
        """
        self._part = part
        if path == STDIN:
            self._queue: queue.SimpleQueue[Line | None] | None = queue.SimpleQueue()
            threading.Thread(target=self._listen, daemon=True).start()
            return
        self._queue = None
        try:
            content = Path(path).read_bytes() if Path(path).is_file() else _none(path)
        except OSError as error:
            reason = (error.strerror or "error").lower()
            raise InputError(f"--prompts: cannot read {path}: {reason}") from None
        self._rest = self._of(content.split(b"\n"))

    def take(self, wait: bool = True) -> Line | None:
        """The next line; None at the end, and where there is none yet and it is not to `wait`."""
        if self._queue is None:
            return next(self._rest, None)
        try:
            line = self._queue.get(block=wait)
        except queue.Empty:
            return None
        if line is None:
            self._queue.put(None)  # the end stays the end
        return line

    def _listen(self) -> None:
        for line in self._of(sys.stdin.buffer):
            self._queue.put(line)
        self._queue.put(None)

    def _of(self, content: list[bytes] | BinaryIO) -> Iterator[Line]:
        index, count = self._part
        for number, line in enumerate(content, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield Line(number, line.strip(), (number - 1) % count == index)


def _none(path: str) -> bytes:
    what = "it is no file" if Path(path).exists() else "no such file"
    raise InputError(f"--prompts: cannot read {path}: {what}")


class Asker:
    """What lines ask for, over what the command line says.

    A prompt that comes again without a seed of its own gets the next one, as on the command line;
    lines of other processes count.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._before: dict[str, int] = {}

    def __call__(self, line: Line) -> Asked | None:
        """None for a line that is another process's.

        Raises:
            InputError: whatever is wrong with the line; the nearest known field is named.
        """
        try:
            fields = _fields(line.content)
        except InputError:
            if line.mine:
                raise
            return None
        own = argparse.Namespace(**vars(self._args))
        for name, value in fields.items():
            setattr(own, "from_" if name == "from" else name, value)
        random = str(own.seed).strip() == requests.RANDOM
        before = 0
        if "seed" not in fields and not own.from_ and own.prompt and not random:
            before = self._before.get(own.prompt[0], 0)
            self._before[own.prompt[0]] = before + (own.variations or 1)
        if not line.mine:
            return None
        name = _name(fields.get("out", f"{line.number:05d}"))
        made = requests.from_args(own)
        return Asked(dataclasses.replace(made, seed=made.later(before)), name, random)


def _fields(content: bytes) -> dict[str, Any]:
    """The fields of a line, as the command's parser would have them."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise InputError("it is not text in UTF-8") from None
    if "\0" in text or "\\u0000" in text:
        raise InputError("a NUL is in it")
    if not text.startswith("{"):
        return {"prompt": [text]}
    try:
        said = json.loads(text)
        json.dumps(said, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError("it is not text in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON ({error})") from None
    made = {}
    for key, value in said.items():
        name = key.replace("-", "_")
        if name not in FIELDS:
            raise InputError(f"unknown field {key!r}{_near(name)}")
        if value is not None:
            made[name] = _value(name, value)
    return made


def _near(name: str) -> str:
    """What was meant: an option of the stages, each of which has its own, or the nearest."""
    staged = [known for known in FIELDS if known.endswith(f"_{name}")]
    return f"; there are {', '.join(staged)}" if staged else nearest(name, FIELDS)


def _value(name: str, value: Any) -> Any:
    """A field's value as an option's text is parsed."""
    if name == "tell":
        if not isinstance(value, dict):
            raise InputError('"tell" takes names with values, such as {"radius": "0.2"}')
        return [f"{key}={told}" for key, told in value.items()]
    if name in _MANY and isinstance(value, list):
        return [_value("image", part) for part in value]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f'"{name}" takes a text or a number, not {json.dumps(value)}')
    if name == "variations":
        if not str(value).isdecimal() or not 1 <= int(value) <= LARGEST_BATCH:
            raise InputError(f'"variations" takes a whole number from 1 to {LARGEST_BATCH}')
        return int(value)
    if name == "prompt":
        return [str(value)]
    if not str(value).strip():
        if name.endswith("negative"):
            return ""
        raise InputError(f'"{name}" is empty')
    return [str(value)] if name in _MANY else str(value)


def _name(out: Any) -> str:
    name = str(out).removesuffix(".mp4")
    if not name or name.startswith(".") or Path(name).name != name or "\\" in name:
        raise InputError(f'"out" is the name of a file in the folder, not {out!r}')
    return name
