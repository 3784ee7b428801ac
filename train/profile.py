"""What the devices did in some steps, by JAX's profiler."""

from __future__ import annotations

import re
from pathlib import Path

import jax

from mv2_jax.errors import InputError
from mv2_jax.train import processes


class Profile:
    """A trace of the steps "20:25" (from 20 to 25, both in it), for TensorBoard or Perfetto.

    Raises:
        InputError: the steps are not so written.
    """

    def __init__(self, steps: str, folder: Path) -> None:
        self._first, self._last = parse(steps)
        self._folder, self._on = folder, False

    def before(self, step: int) -> None:
        """To be called before a step (the first is 1). A resumed run may begin within."""
        if self._first <= step <= self._last and not self._on:
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def ends(self, step: int) -> bool:
        """Whether a step that was begun is the last of it."""
        return self._on and step >= self._last

    def close(self) -> None:
        """Writes the trace; nothing where none is under way."""
        if self._on:
            self._on, self._last = False, 0
            jax.profiler.stop_trace()
            processes.say(f"the profile is in {self._folder}")


def parse(steps: str) -> tuple[int, int]:
    """ "20:25" -> (20, 25); "" -> (0, 0), no step. Raises InputError."""
    if not steps:
        return 0, 0
    found = re.fullmatch(r"([1-9][0-9]*):([1-9][0-9]*)", steps)
    if not found or int(found[2]) < int(found[1]):
        raise InputError(f"profile is {steps!r}: it takes two steps, as in 20:25")
    return int(found[1]), int(found[2])
