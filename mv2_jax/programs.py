"""Compiled programs that say when they compile.

`jax.jit` compiles in silence within the first call. A person who waits for a minute is to know
what for, so `Programs` compiles ahead of the call and reports it through the same callback that
the stages report their steps through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total); `stage` is "i2v", or "compiling i2v" while it compiles."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback that does nothing."""


class Programs:
    """Calls jitted functions; a call with new shapes or new static arguments compiles aloud."""

    def __init__(self) -> None:
        self._compiled: dict[Any, Any] = {}

    def __call__(
        self, stage: str, function: Any, *args: Any, progress: Progress = silent, **static: Any
    ) -> Any:
        """`function(*args, **static)`.

        Args:
            stage: what compilation is reported as.
            function: a `jax.jit` of a function whose static arguments are keywords, the same
                object from call to call.
            args: trees of arrays, all traced.
            static: hashable static arguments.
        """
        key = (function, tuple(sorted(static.items())), _signature(args))
        if key not in self._compiled:
            progress(f"compiling {stage}", 0, 1)
            self._compiled[key] = function.lower(*args, **static).compile()
            progress(f"compiling {stage}", 1, 1)
        return self._compiled[key](*args)


def _signature(args: Any) -> Any:
    """What jit would tell two calls apart by: structure, shapes, types, and chosen devices."""
    leaves, structure = jax.tree.flatten(args)
    usual = SingleDeviceSharding(jax.config.jax_default_device or jax.local_devices()[0])
    return structure, tuple((jax.typeof(leaf), _place(leaf, usual)) for leaf in leaves)


def _place(leaf: Any, usual: Any) -> Any:
    """Where a leaf was put; None for where it would be anyway, so that an output of one call, which
    is committed there, is no news to the next."""
    chosen = leaf.sharding if getattr(leaf, "committed", False) else None
    return None if chosen == usual else chosen
