"""The kinds of steps that a task takes in turns, as its source is asked for them."""

from __future__ import annotations

from dataclasses import dataclass

from mv2_jax.train.media.samples import Size


@dataclass(frozen=True)
class Turn:
    """One kind of steps.

    frames: lengths of clips that it may see; (1,): pictures.
    size: of the stage; batch: samples of all processes.
    turns: of the steps of all kinds, counted round, those that are of this one.
    """

    frames: tuple[int, ...]
    size: Size
    batch: int
    turns: tuple[int, ...] = (0,)
