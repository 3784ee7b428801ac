"""What goes into a gap of `mv2 interpolate`: new pictures, copies, or nothing new.

A gap between equal pictures is filled with copies, and one across a cut or a long pause with the
nearest picture.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from tqdm import tqdm

from mv2_jax.infer import interpolate_cuts as cuts
from mv2_jax.infer import interpolate_pictures as pictures
from mv2_jax.infer.interpolate_layout import Layout
from mv2_jax.infer.interpolate_pictures import Planes
from mv2_jax.infer.interpolate_read import Picture
from mv2_jax.infer.interpolate_timeline import Moment

PAUSE = Fraction(1)
"""Seconds; a picture that stays longer was meant to stay, and is not turned into slow motion."""
REPEAT = 5.0
"""Grey levels by which the most changed 8 x 8 pixels of a repeated drawing differ, at most."""

Fill = Callable[[Planes, Planes, Sequence[float]], list[Planes]]
"""Makes the pictures at some times, each in (0, 1), between two."""


@dataclass(frozen=True)
class Rules:
    """Where nothing is made: at cuts (`cuts` as `interpolate_cuts.is_cut` takes it, None: nowhere),
    in gaps longer than `pause` seconds (None: never), and between pictures that differ by less than
    `repeat` grey levels (None: only between equal ones)."""

    cuts: float | None = cuts.UNEXPLAINED
    pause: Fraction | None = PAUSE
    repeat: float | None = None


@dataclass
class Tally:
    """What was done: pictures given and written, and the gaps left unfilled at cuts and pauses."""

    given: int = 0
    written: int = 0
    cuts: int = 0
    pauses: int = 0
    held: int = 0


class Scene:
    """Fills one gap after another."""

    def __init__(self, layout: Layout, fill: Fill, rules: Rules, tally: Tally):
        self._layout, self._fill, self._rules, self.tally = layout, fill, rules, tally
        self._thumbnail: tuple[Picture, np.ndarray] | None = None

    def gap(
        self, first: Picture, second: Picture, moments: list[Moment]
    ) -> Iterator[tuple[Planes, Fraction]]:
        """Pictures and their times, for moments from `first` (included) to `second`."""
        ends = {0.0: first.planes, 1.0: second.planes}
        parts = [part for _, part in moments if part not in ends]
        if self._still(first, second):
            made = [first.planes for _ in parts]
        elif self._cut(first, second):
            made = [ends[float(part >= 0.5)] for part in parts]
        else:
            made = self._fill(first.planes, second.planes, parts) if parts else []
        new = iter(made)
        for moment, part in moments:
            yield ends[part] if part in ends else next(new), moment

    def _still(self, first: Picture, second: Picture) -> bool:
        if pictures.same(first.planes, second.planes):
            return True
        if self._rules.repeat is not None and alike(self._rules.repeat)(first, second):
            return True
        limit = self._rules.pause
        pause = limit is not None and second.time - (first.repeats or (first.time,))[-1] > limit
        self.tally.pauses += pause
        return pause

    def _cut(self, first: Picture, second: Picture) -> bool:
        if self._rules.cuts is None:
            return False
        known = self._thumbnail
        old = known[1] if known and known[0] is first else self._reduced(first)
        new = self._reduced(second)
        self._thumbnail = (second, new)
        cut = cuts.is_cut(old, new, self._rules.cuts)
        self.tally.cuts += cut
        return cut

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


def filler(name: str, views: int, scale: Fraction, layout: Layout, bar: tqdm) -> Fill:
    """The network, loaded once the first gap wants it."""
    made: list[Fill] = []

    def fill(first: Planes, second: Planes, parts: Sequence[float]) -> list[Planes]:
        if made:
            return made[0](first, second, parts)
        bar.set_description_str("compiling")
        from mv2_jax.infer import interpolate_network, meshes

        bar.write(f"mv2: on {meshes.described(None, many=False)}", file=sys.stderr)

        made.append(interpolate_network.filler(name, views, layout, scale))
        done = made[0](first, second, parts)
        bar.set_description_str("mv2 interpolate")
        return done

    if name == "none":
        return lambda first, second, parts: [first if part < 0.5 else second for part in parts]
    return fill
