"""`mv2 interpolate`: any video, smoother.

Pictures stream through: one gap is in memory at a time, however long the video. Those of the source
pass in their own samples, and only the new ones are made; a gap between equal pictures is filled
with copies, and a gap across a cut or a long pause with the nearest picture. JAX is loaded once the
file is known to be good.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm import tqdm

from mv2_jax.errors import InputError
from mv2_jax.infer import interpolate_cuts as cuts
from mv2_jax.infer import interpolate_pictures as pictures
from mv2_jax.infer import interpolate_read as reading
from mv2_jax.infer import interpolate_write as writing
from mv2_jax.infer import interpolators
from mv2_jax.infer.interpolate_pictures import Layout, Planes
from mv2_jax.infer.interpolate_read import Picture
from mv2_jax.infer.interpolate_write import Even, Moment, Multiply

PAUSE = Fraction(1)
"""Seconds; a picture that stays longer was meant to stay, and is not turned into slow motion."""

Fill = Callable[[Planes, Planes, Sequence[float]], list[Planes]]
"""Makes the pictures at some times, each in (0, 1), between two."""


@dataclass
class Tally:
    """What was done: pictures given and written, and the gaps left unfilled at cuts and pauses."""

    given: int = 0
    written: int = 0
    cuts: int = 0
    pauses: int = 0


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 interpolate`; returns the exit code.

    Raises:
        InputError: a bad flag, or a video that cannot be used.
        OSError: the result cannot be written.
    """
    args = _parser().parse_args(list(arguments))
    out = args.out or f"{Path(args.video).stem}-smooth.mp4"
    interpolators.check(args.vfi)
    writing.check(out, args.video)
    began = time.monotonic()
    with _stopped_in_order(), reading.opened(args.video) as source:
        if source.survey.interlaced:
            _warn("the video is interlaced; deinterlace it first")
        if source.unheard:
            _warn(f"{source.unheard} audio streams are left out: there is no decoder for them here")
        with _bar(source.survey.count) as bar:
            tally, layout, rate = run(source, out, args, bar)
        if source.lost:
            _warn(f"{source.lost} frames are left out: their times are no later than those before")
    print(_summary(out, tally, layout, rate, time.monotonic() - began))
    return 0


def run(
    source: reading.Source, out: str, args: argparse.Namespace, bar: tqdm
) -> tuple[Tally, Layout, Fraction]:
    """Reads, fills and writes; returns what was done, how it is stored, and the new pace."""
    tally = Tally()
    waiting: list = []  # audio that lies in the file before the first picture
    before: Picture | None = None
    with ExitStack() as stack:
        target = timing = scene = None
        for event in source.events():
            if not isinstance(event, Picture):
                target.sound(event) if target else waiting.append(event)
                continue
            if before is None:
                layout = source.layout
                timing = Even(args.fps, event.time) if args.fps else Multiply(args.times or 2)
                scene = Scene(layout, _filler(args.vfi, args.views, layout, bar), tally)
                target = stack.enter_context(writing.writing(out, source, timing, args.crf))
                for packet in waiting:
                    target.sound(packet)
            else:
                moments = timing.between(before.time, event.time)
                _show(target, scene.gap(before, event, moments), layout, tally)
            before = event
            tally.given += 1
            bar.update()
        # The last picture stays for as long as it did.
        ends = before.time + before.lasts
        for moment, _ in timing.after(before.time, before.lasts):
            target.picture(before.planes, layout, moment, max(ends - moment, Fraction(0)))
            tally.written += 1
    return tally, layout, timing.rate(source.survey.rate)


def _show(
    target: writing.Target, shown: Iterator[tuple[Planes, Fraction]], layout: Layout, tally: Tally
) -> None:
    for planes, moment in shown:
        target.picture(planes, layout, moment)
        tally.written += 1


class Scene:
    """Fills one gap after another."""

    def __init__(self, layout: Layout, fill: Fill, tally: Tally):
        self._layout, self._fill, self._tally = layout, fill, tally
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
        pause = second.time - first.time > PAUSE
        self._tally.pauses += pause
        return pause

    def _cut(self, first: Picture, second: Picture) -> bool:
        known = self._thumbnail
        old = known[1] if known and known[0] is first else self._reduced(first)
        new = self._reduced(second)
        self._thumbnail = (second, new)
        cut = cuts.is_cut(old, new)
        self._tally.cuts += cut
        return cut

    def _reduced(self, picture: Picture) -> np.ndarray:
        return cuts.thumbnail(picture.planes[0], self._layout.bits)


def _filler(name: str, views: int, layout: Layout, bar: tqdm) -> Fill:
    """The network, loaded once the first gap wants it."""
    made: list[Fill] = []

    def fill(first: Planes, second: Planes, parts: Sequence[float]) -> list[Planes]:
        if not made:
            bar.set_description_str("compiling")
            from mv2_jax.infer import interpolate_network

            made.append(interpolate_network.filler(name, views, layout))
            done = made[0](first, second, parts)
            bar.set_description_str("mv2 interpolate")
            return done
        return made[0](first, second, parts)

    if name == "none":
        return lambda first, second, parts: [first if part < 0.5 else second for part in parts]
    return fill


@contextmanager
def _stopped_in_order() -> Iterator[None]:
    """Ends as with Ctrl-C when told to, or when the terminal is closed.

    Python would leave the scratch file behind. What is ignored, as under nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # Windows has no hangup.
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.signal(number, stop) for number in heard]
    try:
        yield
    finally:
        for number, handler in zip(heard, before):
            signal.signal(number, handler)


def _bar(count: int) -> tqdm:
    return tqdm(
        desc="mv2 interpolate",
        total=count,
        file=sys.stderr,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}, "
        "{remaining} left",
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 10.0,
    )


def _summary(out: str, tally: Tally, layout: Layout, rate: Fraction, seconds: float) -> str:
    left = [f"{n} {what}" for n, what in ((tally.cuts, "cuts"), (tally.pauses, "pauses")) if n]
    kept = f", {' and '.join(left)} left as they are" if left else ""
    return (
        f"{out}: {tally.written} frames of {layout.width}x{layout.height} from {tally.given}, "
        f"{float(rate):.5g} a second{kept}; done after {seconds:.0f} s"
    )


def _warn(line: str) -> None:
    print(f"mv2: warning: {line}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mv2 interpolate",
        description="Makes a video smoother by frames between its frames. Its sound, colours and "
        "times are kept; nothing is made across a cut or between equal frames.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("video", metavar="VIDEO", help="a video in any usual container")
    add("-o", "--out", metavar="FILE", help="an .mp4, .mkv or .mov (VIDEO-smooth.mp4, here)")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--times", type=_times, metavar="N", help="frames for each (2)")
    pace.add_argument("--fps", type=_fps, metavar="X", help="frames a second: 60, 59.94 ...")
    add("--vfi", default="rife", metavar="NAME", help=interpolators.HELP)
    add("--views", type=_views, default=1, metavar="N", help="1 to 8: N times slower, better (1)")
    add("--crf", type=_crf, default=16, metavar="N", help="x264's quality, 0 lossless to 51 (16)")
    return parser


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(
                f"takes a whole number from {low} to {high}, not {text!r}"
            )
        return int(text)

    return parse


_times, _views, _crf = _whole(1, 64), _whole(1, 8), _whole(0, 51)


def _fps(text: str) -> Fraction:
    try:
        fps = Fraction(text)
        near = Fraction(round(fps * 1001 / 1000) * 1000, 1001)
        # 59.94 and 23.976 are how people write 60000/1001 and 24000/1001.
        fps = near if fps.denominator > 1 and abs(fps - near) < Fraction(1, 200) else fps
    except (ValueError, ZeroDivisionError):
        fps = Fraction(0)
    if not 1 <= fps <= 1000:
        raise argparse.ArgumentTypeError(f"takes frames a second from 1 to 1000, not {text!r}")
    return fps
