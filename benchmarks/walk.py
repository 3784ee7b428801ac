"""How a prompt comes to the cross-attention: the calls on its way, their modules and its names.

    python benchmarks/walk.py             # Cascade.t2i, from Python
    python benchmarks/walk.py i2v         # Cascade.i2v
    python benchmarks/walk.py generate    # mv2 generate, whose parser and files come before
    python benchmarks/walk.py --entered   # every function entered on the way, too

The shipped cascade makes a picture (or a clip) and is stopped where its network first attends to
the text. What counts are functions of this package; those of JAX and Flax between them do not.

- calls: the functions that are open then, outermost first, and the modules that they lie in;
- entered: all functions that were entered until then, and their modules;
- names: the parameters and variables that held the prompt on the way, as text, as token ids or as
  the text encoder's states (found by shape: nothing else is as long as a row of tokens). Those of
  the networks' inside, in nn/ and models/, do not count.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import mv2_jax

PROMPT = "a red ball bouncing over a meadow"
_PACKAGE = f"{Path(mv2_jax.__file__).parent}/"


class _Arrived(BaseException):
    """The prompt is where it was to go. No `except Exception` on the way may catch it."""


@dataclasses.dataclass(frozen=True)
class Walk:
    """What was met on the way: functions as "module:name", each once in `entered`."""

    calls: tuple[str, ...]
    entered: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of the calls."""
        return _modules(self.calls)

    def __str__(self) -> str:
        return (
            f"{len(self.calls)} calls in {len(self.modules)} modules; {len(self.entered)} "
            f"functions in {len(_modules(self.entered))} modules entered; {len(self.names)} names"
        )


def walk(call: Callable[[], Any], length: int) -> Walk:
    """Follows the prompt through `call()` until the cross-attention.

    Args:
        length: tokens in a row of the text encoder's.
    """
    entered: dict[str, None] = {}
    names: dict[str, None] = {}
    calls: list[str] = []

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "return") or not _counts(frame):
            return
        if not _name(frame).startswith(("nn.", "models.")):
            names.update(dict.fromkeys(_holding(frame.f_locals, length)))
        if event == "call":
            entered[_name(frame)] = None
            if _is_cross_attention(frame):
                calls.extend(_open(frame))
                raise _Arrived

    sys.setprofile(look)
    try:
        call()
    except _Arrived:
        pass
    finally:
        sys.setprofile(None)
    return Walk(tuple(calls), tuple(entered), tuple(names))


def _counts(frame: FrameType) -> bool:
    code = frame.f_code
    written = not code.co_name.startswith("<") or code.co_name == "<lambda>"
    return written and code.co_filename.startswith(_PACKAGE)


def _name(frame: FrameType) -> str:
    module = frame.f_code.co_filename.removeprefix(_PACKAGE).removesuffix(".py")
    return f"{module.removesuffix('/__init__').replace('/', '.')}:{frame.f_code.co_qualname}"


def _modules(functions: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.partition(":")[0] for name in functions))


def _is_cross_attention(frame: FrameType) -> bool:
    """Whether a layer attends to the text just now: the one that Stable Diffusion calls attn2."""
    return frame.f_code.co_name == "attend" and getattr(_caller(frame), "name", None) == "attn2"


def _caller(frame: FrameType) -> Any:
    return frame.f_back.f_locals.get("self") if frame.f_back else None


def _open(frame: FrameType | None) -> list[str]:
    """The functions of the package that are open, outermost first."""
    found = []
    while frame is not None:
        if _counts(frame):
            found.append(_name(frame))
        frame = frame.f_back
    return found[::-1]


def _holding(variables: dict[str, Any], length: int) -> list[str]:
    """Names of the variables that are or hold the prompt."""
    return [
        name
        for name, value in variables.items()
        if name not in ("self", "cls") and _holds(value, length)
    ]


def _holds(value: Any, length: int, depth: int = 4) -> bool:
    if isinstance(value, str):
        return PROMPT in value
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and hasattr(value, "dtype"):
        ids = str(value.dtype).startswith("int") and len(shape) > 1 and shape[-1] == length
        return ids or (len(shape) > 2 and shape[-2] == length)
    if not depth:
        return False
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, part.name, None) for part in dataclasses.fields(value)]
    else:
        return False
    return any(_holds(part, length, depth - 1) for part in parts)


def followed(name: str, scratch: Path) -> tuple[Callable[[], Any], int]:
    """What to follow, "t2i", "i2v" or "v2v" of a `Cascade` or "generate", and its tokens in a row.

    Args:
        scratch: an empty folder. Programs that were kept earlier would spare a part of the way.
    """
    os.environ["XDG_CACHE_HOME"] = str(scratch)
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    from mv2_jax import bundle, cli

    weights = bundle.read()
    length = weights.config("text_encoder").max_length
    if name == "generate":
        return lambda: cli.main(["generate", PROMPT, "-o", str(scratch / "out.mp4")]), length
    from mv2_jax import cascade
    from mv2_jax.diffusion import keys

    four, seeds = cascade.load(weights), keys.seeds([0])
    image = np.zeros((1, *weights.stages["i2v"].size, 3), np.float32)
    clip = np.zeros((1, weights.stages["v2v"].frames, *image.shape[1:]), np.float32)
    calls = {
        "t2i": lambda: four.t2i([PROMPT], keys=seeds),
        "i2v": lambda: four.i2v([PROMPT], image, keys=seeds),
        "v2v": lambda: four.v2v([PROMPT], image, clip, keys=seeds),
    }
    return calls[name], length


def main() -> None:
    """Prints a walk."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", default="t2i", choices=["t2i", "i2v", "v2v", "generate"])
    parser.add_argument("--entered", action="store_true", help="list all functions entered, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = walk(*followed(args.what, Path(scratch)))
    if args.entered:
        print(*found.entered, "", sep="\n")
    for depth, call in enumerate(found.calls):
        print(f"{'  ' * depth}{call}")
    print(f"\nnames: {', '.join(found.names)}\n\n{args.what}: {found}")


if __name__ == "__main__":
    main()
