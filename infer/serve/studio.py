"""`mv2 studio`: `mv2 serve` with a page (`serve.studio_page`)."""

from __future__ import annotations

from collections.abc import Sequence

from mv2_jax.infer.serve import command


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 studio`; returns the exit code. Raises InputError as `mv2 serve`."""
    return command.main(arguments, studio=True)
