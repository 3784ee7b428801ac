"""What goes into a gap of `mv2 interpolate`: new pictures, copies, or nothing new.

A gap between equal pictures is filled with copies, and one across a cut or a long pause with the
nearest picture. What the network loses between two pictures is held (`interpolate_lost`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from tqdm import tqdm

from mv2_jax.infer import interpolate_cuts as cuts
from mv2_jax.infer import interpolate_lost as lost
from mv2_jax.infer import interpolate_pictures as pictures
from mv2_jax.infer.interpolate_layout import Layout
from mv2_jax.infer.interpolate_pictures import Planes
from mv2_jax.infer.interpolate_read import Picture
from mv2_jax.infer.interpolate_timeline import Moment

PAUSE = Fraction(1)
"""Seconds; a picture that stays longer was meant to stay, and is not turned into slow motion."""
REPEAT = 5.0
"""Grey levels by which the most changed 8 x 8 pixels of a repeated drawing differ, at most."""

Fill = Callable[[Planes, Planes, Sequence[float]], Sequence[Planes]]
"""Makes the pictures at some times, each in (0, 1), between two. They may be under way still, until
one is looked at."""


@dataclass(frozen=True)
class Rules:
    """Where nothing is made: at cuts (`cuts` as `interpolate_cuts.is_cut` takes it, None: nowhere),
    in gaps longer than `pause` seconds (None: never), and between pictures that differ by less than
    `repeat` grey levels (None: only between equal ones). `hold`: whether what is lost is held."""

    cuts: float | None = cuts.UNEXPLAINED
    pause: Fraction | None = PAUSE
    repeat: float | None = None
    hold: bool = True


@dataclass
class Tally:
    """What was done: pictures given and written, the gaps left unfilled at cuts and pauses, and
    those in which something was held."""

    given: int = 0
    written: int = 0
    cuts: int = 0
    pauses: int = 0
    held: int = 0


@dataclass(frozen=True)
class Gap:
    """A gap that is filled, or under way: its moments, and the pictures that are not its ends'."""

    first: Picture
    second: Picture
    moments: list[Moment]
    made: Sequence[Planes]
    cut: bool = False
    pause: bool = False
    new: bool = False  # whether a network made them


class Scene:
    """Fills one gap after another.

    Args:
        ahead: gaps that may be begun before the first of them is looked at.
    """

    def __init__(self, layout: Layout, fill: Fill, rules: Rules, tally: Tally, ahead: int = 0):
        self._layout, self._fill, self._rules, self.tally = layout, fill, rules, tally
        self._thumbnail: tuple[Picture, np.ndarray] | None = None
        self.ahead = ahead

    def begin(self, first: Picture, second: Picture, moments: list[Moment]) -> Gap:
        """Begins a gap, for moments from `first` (included) to `second`."""
        parts = [part for _, part in moments if part not in (0.0, 1.0)]
        still, pause = self._still(first, second)
        if still:
            return Gap(first, second, moments, [first.planes for _ in parts], pause=pause)
        if self._cut(first, second):
            nearest = [(second if part >= 0.5 else first).planes for part in parts]
            return Gap(first, second, moments, nearest, cut=True)
        made = self._fill(first.planes, second.planes, parts) if parts else []
        return Gap(first, second, moments, made, new=True)

    def pictures(self, gap: Gap) -> Iterator[tuple[Planes, Fraction]]:
        """A gap's pictures and their times."""
        self.tally.cuts += gap.cut
        self.tally.pauses += gap.pause
        first, second, made = gap.first.planes, gap.second.planes, gap.made
        if gap.new and self._rules.hold:
            parts = [part for _, part in gap.moments if part not in (0.0, 1.0)]
            made, held = lost.held(first, second, parts, made, self._layout)
            self.tally.held += held
        ends, new = {0.0: first, 1.0: second}, iter(made)
        for moment, part in gap.moments:
            yield ends[part] if part in ends else next(new), moment

    def _still(self, first: Picture, second: Picture) -> tuple[bool, bool]:
        """Whether nothing moves in a gap, and whether that is for a pause."""
        if pictures.same(first.planes, second.planes):
            return True, False
        if self._rules.repeat is not None and alike(self._rules.repeat)(first, second):
            return True, False
        limit = self._rules.pause
        pause = limit is not None and second.time - (first.repeats or (first.time,))[-1] > limit
        return pause, pause

    def _cut(self, first: Picture, second: Picture) -> bool:
        if self._rules.cuts is None:
            return False
        known = self._thumbnail
        old = known[1] if known and known[0] is first else self._reduced(first)
        new = self._reduced(second)
        self._thumbnail = (second, new)
        return cuts.is_cut(old, new, self._rules.cuts)

    def _reduced(self, picture: Picture) -> np.ndarray:
        return cuts.thumbnail(picture.planes[0], self._layout.bits)


def alike(levels: float) -> Callable[[Picture, Picture], bool]:
    """Whether two pictures show the same, up to what a codec changes: in no 8 x 8 pixels of luma
    do they differ by more than so many grey levels on average."""

    def same(first: Picture, second: Picture) -> bool:
        a, b = first.planes[0], second.planes[0]
        if a.shape != b.shape:
            return False
        apart = np.abs(a.astype(np.float32) - b) / 2 ** (first.layout.bits - 8)
        rows, columns = (max(1, side // 8) for side in apart.shape)
        tall, wide = (min(8, side) for side in apart.shape)
        cells = apart[: rows * tall, : columns * wide].reshape(rows, tall, columns, wide)
        return float(cells.mean(axis=(1, 3)).max()) <= levels

    return same


def filler(
    name: str, views: int, scale: Fraction, layout: Layout, bar: tqdm, mesh: Any = None
) -> Fill:
    """The network, loaded once the first gap wants it, on one device or over a mesh."""
    made: list[Fill] = []

    def fill(first: Planes, second: Planes, parts: Sequence[float]) -> Sequence[Planes]:
        if made:
            return made[0](first, second, parts)
        bar.set_description_str("compiling")
        from mv2_jax.infer import interpolate_network, meshes

        bar.write(f"mv2: on {meshes.described(mesh)}", file=sys.stderr)
        made.append(interpolate_network.filler(name, views, layout, scale, mesh))
        done = made[0](first, second, parts)
        bar.set_description_str("mv2 interpolate")
        return done

    if name == "none":
        return lambda first, second, parts: [first if part < 0.5 else second for part in parts]
    return fill
