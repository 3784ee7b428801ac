"""When each picture of `mv2 interpolate` is shown: plain values, exact fractions of seconds."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mv2_jax.infer.interpolate_read import Picture

# A clock's ticks a second, at most: containers keep them in 31 bits, and MP4 multiplies small ones.
_FINEST, _COMMON = 2**24, 90_000

Moment = tuple[Fraction, float]
"""(seconds, where in the gap: 0 the first picture, 1 the second)."""


@dataclass(frozen=True)
class Multiply:
    """`times` pictures for every one, evenly spaced in each gap, however long it is."""

    times: int

    def rate(self, rate: Fraction) -> Fraction:
        """Pictures a second, for a source's."""
        return rate * self.times

    def between(
        self, first: Fraction, second: Fraction, repeats: Sequence[Fraction] = ()
    ) -> list[Moment]:
        """The moments from the first picture, it included, to the second.

        `repeats` are the times of pictures in between that only repeated the first: the pace there
        stays what it was.
        """
        stops, moments = [first, *repeats, second], []
        for start, end in itertools.pairwise(stops):
            moments += [start + (end - start) * k / self.times for k in range(self.times)]
        return [(moment, float((moment - first) / (second - first))) for moment in moments]

    def after(self, last: Fraction, lasts: Fraction) -> list[Moment]:
        """The moments from the last picture on."""
        return [(last, 0.0)]

    def clock(self, base: Fraction) -> Fraction:
        """Seconds of a tick of the output, for a source's."""
        tick = base / self.times
        return tick if tick.denominator <= _FINEST else Fraction(1, _COMMON)


@dataclass(frozen=True)
class Even:
    """`fps` pictures a second, whatever the source's pace; nothing earlier than its first.

    A moment within a hundredth of a gap from a picture is that picture's: time stamps are rounded,
    and a picture as it was is better than one made anew.
    """

    fps: Fraction
    start: Fraction

    def rate(self, rate: Fraction) -> Fraction:
        return self.fps

    def between(
        self, first: Fraction, second: Fraction, repeats: Sequence[Fraction] = ()
    ) -> list[Moment]:
        gap, made = second - first, []
        for moment in self._within(first, second):
            part = float((moment - first) / gap)
            made.append((moment, 0.0 if part < 0.01 else 1.0 if part > 0.99 else part))
        return made

    def after(self, last: Fraction, lasts: Fraction) -> list[Moment]:
        # Where nobody says how long the last picture lasts, it is there once.
        ends = last + (lasts or 1 / self.fps)
        return [(moment, 0.0) for moment in self._within(last, ends)]

    def clock(self, base: Fraction) -> Fraction:
        ticks = math.lcm(self.fps.numerator, _COMMON)  # the common ones serve the first picture
        return Fraction(1, ticks if ticks <= _FINEST else _COMMON)

    def _within(self, first: Fraction, second: Fraction) -> Iterator[Fraction]:
        k = math.ceil((first - self.start) * self.fps)
        while (moment := self.start + k / self.fps) < second:
            yield moment
            k += 1


@dataclass(frozen=True)
class Span:
    """The part of a source that is used, and how much slower it is shown.

    `origin`, `start` and `end` are seconds of the source's own clock; without a start everything is
    used, and `origin` becomes second 0.
    """

    origin: Fraction = Fraction(0)
    start: Fraction | None = None
    end: Fraction | None = None
    slower: Fraction = Fraction(1)

    def holds(self, time: Fraction) -> bool:
        """Whether something at that time is used."""
        after = self.start is None or time >= self.start
        return after and (self.end is None or time < self.end)

    def shown(self, time: Fraction) -> Fraction:
        """When it is shown, counted from the start of the result."""
        return (time - (self.origin if self.start is None else self.start)) * self.slower

    def of(self, pictures: Iterable[Picture]) -> Iterator[Picture]:
        """The pictures of the span at the times at which they are shown.

        The first may begin before the span, the last one stay beyond it; both are cut to it.
        """
        for picture in pictures:
            if self.end is not None and picture.time >= self.end:
                return
            time = picture.time if self.start is None else max(picture.time, self.start)
            ends = picture.time + picture.lasts
            ends = ends if self.end is None else min(ends, self.end)
            lasts = max(ends - time, Fraction(0)) * self.slower
            yield dataclasses.replace(picture, time=self.shown(time), lasts=lasts)


def without_repeats(
    pictures: Iterable[Picture], same: Callable[[Picture, Picture], bool], most: int = 3
) -> Iterator[Picture]:
    """Pictures without those that only repeat the one before them, as drawings on twos do.

    A run of more than `most` repeats is no slow motion but a hold: it stays, up to its last
    picture, and only from there on is the next one approached.
    """
    kept: Picture | None = None
    run: list[Picture] = []
    holding = False  # the run is too long already, and what of it was read has been given
    for picture in pictures:
        if kept is None:
            kept = picture
        elif not same(kept, picture):
            yield dataclasses.replace(kept, repeats=tuple(each.time for each in run))
            kept, run, holding = picture, [], False
        elif holding:
            yield kept
            kept = picture
        else:
            run.append(picture)
            if len(run) > most:
                yield from (kept, *run[:-1])
                kept, run, holding = run[-1], [], True
    if kept is not None:
        yield from (kept, *run)
