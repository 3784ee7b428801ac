"""`mv2 interpolate`: any video, smoother.

    read (interpolate_read)  ->  timeline (interpolate_timeline)  ->  make (interpolate_make)
        ->  encode (interpolate_encode)  ->  write (interpolate_write)

Pictures stream through: one gap is in memory at a time, however long the video. Those of the source
pass in their own samples, and only the new ones are made. JAX is loaded once the file is known to
be good.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mv2_jax.errors import InputError
from mv2_jax.infer import interpolate_codecs as codecs
from mv2_jax.infer import interpolate_flags, interpolators, meshes
from mv2_jax.infer import interpolate_images as images
from mv2_jax.infer import interpolate_layout as layouts
from mv2_jax.infer import interpolate_make as making
from mv2_jax.infer import interpolate_passengers as passengers
from mv2_jax.infer import interpolate_pictures as pictures
from mv2_jax.infer import interpolate_read as reading
from mv2_jax.infer import interpolate_write as writing
from mv2_jax.infer.interpolate_layout import Layout
from mv2_jax.infer.interpolate_make import Gap, Rules, Scene, Tally
from mv2_jax.infer.interpolate_read import Picture
from mv2_jax.infer.interpolate_timeline import Even, Multiply, Span, without_repeats
from mv2_jax.infer.release import version


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 interpolate`; returns the exit code.

    Raises:
        InputError: a bad flag, or a video that cannot be used.
        OSError: the result cannot be written.
    """
    args = interpolate_flags.parse(arguments)
    interpolators.check(args.vfi)
    meshes.of(args.mesh)  # what does not fit is said before any video is read
    jobs = list(zip(args.videos, outputs(args.videos, args.out, args.force)))
    for video, out in jobs:
        writing.check(out, video, args.force)
        if _is_film(out):
            codec = codecs.find(args.codec, Path(out).suffix.lower())
            codecs.check(codec, args.crf, args.preset, args.pixels)
        elif args.codec or args.preset or args.pixels or args.sound:
            raise InputError(
                f"{out} is not a video: --codec, --preset, --pixels and --sound do not apply"
            )
    for video, out in jobs:
        _one(video, out, args)
    return 0


def outputs(videos: Sequence[str], out: str | None, force: bool) -> list[str]:
    """The file of each video: `out`, or beside each other NAME-smooth.mp4, numbered where such a
    file is there already; of several videos in the folder `out`, which is made.

    Raises:
        InputError: one name for several videos.
        OSError: the folder cannot be made.
    """
    if out is not None and len(videos) > 1 and not Path(out).is_dir():
        if Path(out).suffix or Path(out).exists():
            raise InputError(
                f"-o {out} is one file, and there are {len(videos)} videos; name a folder"
            )
        Path(out).mkdir(parents=True)
    made: list[str] = []
    for video in videos:
        stem = Path(video).stem
        if out is not None and not Path(out).is_dir():
            made.append(out)
            continue
        folder, k = Path(out or "."), 1
        while True:
            path = folder / f"{stem}-smooth{f'-{k}' if k > 1 else ''}.mp4"
            if str(path) not in made and (force or not path.exists()):
                break
            k += 1
        made.append(str(path))
    return made


def _one(video: str, out: str, args: argparse.Namespace) -> None:
    """One video, from file to file."""
    began = time.monotonic()
    with _opened(video, args) as source:
        for fault in source.survey.faults:
            _warn(f"{video}: {fault}; what can be decoded is used (--strict refuses)")
        if args.start and args.start >= source.survey.length:
            raise InputError(
                f"{video} has no frames from --start on: it is "
                f"{float(source.survey.length):.2f} s long"
            )
        with _bar(_expected(source, args)) as bar:
            done = run(source, out, args, bar)
        for line in source.lost.lines(video):
            _warn(line)
        if done.clear:
            _warn(
                f"{out} has no transparency: the pictures are over white (.webm, --codec prores in "
                "a .mov and --codec ffv1 in an .mkv keep it)"
            )
    print(summary(out, done, time.monotonic() - began))


def _opened(path: str, args: argparse.Namespace) -> Any:
    """The source of a path: a video, a folder of pictures, or an animated WebP."""
    if Path(path).is_dir():
        return images.folder(path, args.pace, args.strict)
    if args.pace is not None:
        raise InputError(f"--pace is for folders of pictures; {path} has times of its own")
    if images.animated(path):
        return images.webp(path, args.strict)
    return reading.opened(path, args.strict)


def _is_film(out: str) -> bool:
    """Whether a result is a video, rather than pictures."""
    return Path(out).suffix.lower() not in ("", ".gif", ".webp")


@dataclass(frozen=True)
class Done:
    """What came of a video; `clear` where see-through pictures were put over white."""

    tally: Tally
    layout: Layout
    rate: Fraction
    clear: bool


def run(source: reading.Source, out: str, args: argparse.Namespace, bar: tqdm) -> Done:
    """Reads, fills and writes one video."""
    span = _span(source, args)
    with closing(source.pictures(args.start or Fraction(0))) as given:
        used = span.of(given)
        if args.dedupe is not None:
            used = without_repeats(used, making.alike(args.dedupe))
        first = next(used, None)
        if first is None:
            raise InputError(f"{source.path}: there are no frames from --start to --end")
        timing = _timing(args, first.time)
        film = _film(source, out, args, span, timing)
        with film.segments(_key(source, args)) as segments:
            work = _Work(film, segments, timing, _scene(film, args, bar), bar)
            try:
                work.through(first, used)
            except BaseException as error:
                _tell_of_rest(segments, error)
                raise
        damaged = film.write(source, segments, work.lasts)
    if damaged:
        _warn(f"{out}: {damaged} damaged packets of sound or subtitles are left out")
    rate = timing.rate(source.survey.rate / span.slower)
    return Done(work.tally, film.encoder.layout, rate, work.clear)


class _Work:
    """Pictures on their way from a source into segments."""

    def __init__(self, film: Any, segments: Any, timing: Any, scene: Scene, bar: tqdm):
        self._film, self._segments, self._timing = film, segments, timing
        self._scene, self._bar = scene, bar
        self.tally, self.clear, self.lasts = scene.tally, False, Fraction(0)
        if segments.note:
            for name, value in segments.note.items():
                setattr(self.tally, name, value)
            print(f"mv2: {segments.done} frames are there from before", file=sys.stderr)

    def through(self, first: Picture, rest: Iterator[Picture]) -> None:
        """Everything, one gap after the other."""
        before, passed = self._own(first), 0
        begun: deque[Gap] = deque()
        for picture in rest:
            after = self._own(picture)
            moments = self._timing.between(before.time, after.time, before.repeats)
            passed += len(moments)
            if passed > self._segments.done:
                begun.append(self._scene.begin(before, after, moments))
            if len(begun) > self._scene.ahead:
                self._write(begun.popleft())
            self._bar.update(1 + len(before.repeats))
            before = after
        while begun:
            self._write(begun.popleft())
        # The last picture stays for as long as it did, and is encoded by itself: MP4 keeps the
        # duration of what is decoded last alone, which would otherwise be another one.
        moments = self._timing.after(before.time, before.lasts)
        self.tally.given += self._segments.done < passed + len(moments)
        for k, (moment, _) in enumerate(moments, start=1):
            if passed + k <= self._segments.done:
                continue
            if k == len(moments):
                self._segments.end(dataclasses.asdict(self.tally))
            self.tally.written += 1
            self._segments.picture(before.planes, moment)
        self._segments.end(dataclasses.asdict(self.tally))
        self._bar.update()
        self.lasts = max(before.time + before.lasts - moments[-1][0], Fraction(0))

    def _write(self, gap: Gap) -> None:
        for planes, moment in self._scene.pictures(gap):
            self._segments.picture(planes, moment)
            self.tally.written += 1
        self.tally.given += 1 + len(gap.first.repeats)
        self._segments.boundary(lambda: dataclasses.asdict(self.tally))

    def _own(self, picture: Picture) -> Picture:
        """A picture in the encoder's layout."""
        layout = self._film.encoder.layout
        if not layout.alpha:
            self.clear = self.clear or pictures.clear(picture.planes, picture.layout)
        planes = pictures.convert(picture.planes, picture.layout, layout)
        return dataclasses.replace(picture, planes=planes, layout=layout)


def _span(source: reading.Source, args: argparse.Namespace) -> Span:
    # Only a start later than zero is moved to zero: what is negative is a codec's run-up.
    origin = max(source.survey.start, Fraction(0))
    start = None if args.start is None else source.survey.start + args.start
    end = None if args.end is None else source.survey.start + args.end
    return Span(origin, start, end, args.slow)


def _timing(args: argparse.Namespace, first: Fraction) -> Multiply | Even:
    if args.fps:
        return Even(args.fps, first)
    return Multiply(args.times or (2 if args.slow == 1 else -int(-args.slow // 1)))


def _film(
    source: reading.Source, out: str, args: argparse.Namespace, span: Span, timing: Multiply | Even
) -> writing.Film | images.Album:
    """How the result is written; says what of the source it cannot keep."""
    suffix = Path(out).suffix.lower()
    if not _is_film(out):
        rate = timing.rate(source.survey.rate / span.slower)
        if suffix == ".gif" and rate > 50:
            _warn(f"{out}: GIF has hundredths of a second, and most browsers show no more than 50")
        made = images.lossless(
            source.layout, rate, timing.clock(source.base * span.slower), deep=suffix == ""
        )
        return images.Album(out, made, 100 if args.crf == 0 else 100 - (args.crf or 15))
    encoder = codecs.encoder(
        codecs.find(args.codec, suffix),
        source.layout,
        crf=args.crf,
        preset=args.preset,
        pixels=args.pixels,
        rate=timing.rate(source.survey.rate / span.slower),
        clock=timing.clock(source.base * span.slower),
        aspect=source.aspect,
        side=source.side,
        location=source.location,
    )
    lost = layouts.losses(source.layout, encoder.layout)
    if lost:
        _warn(f"{out}: {lost}, the nearest that {encoder.name} has")
    elif encoder.layout.chroma == layouts.RGB and encoder.name.startswith("libx264"):
        _warn(f"{out} is RGB as its source, which few players show (--pixels yuv420p: all do)")
    sound = args.sound or ("keep" if span.slower == 1 else "stretch")
    plan = passengers.plan(out, source.container, source.stream, span, sound)
    for line in plan.said:
        _warn(line)
    return writing.Film(out, encoder, plan, span)


def _scene(film: writing.Film | images.Album, args: argparse.Namespace, bar: tqdm) -> Scene:
    rules = Rules(args.cuts, args.pause * args.slow if args.pause else None, args.dedupe)
    rules = dataclasses.replace(rules, hold=args.jumps == "hold" and args.vfi != "none")
    layout, mesh = film.encoder.layout, meshes.of(args.mesh)
    fill = making.filler(args.vfi, args.views, args.scale, layout, bar, mesh)
    # One gap for each device under way, and one in wait.
    return Scene(layout, fill, rules, Tally(), 2 * mesh.size if mesh else 0)


def _key(source: reading.Source, args: argparse.Namespace) -> str:
    """What this work is known by, should it be stopped and begun again."""
    apart = ("videos", "out", "force", "strict", "sound", "mesh")
    told = {key: value for key, value in vars(args).items() if key not in apart}
    return writing.key_of(source.path, sorted(told.items(), key=str), version())


def _tell_of_rest(segments: Any, error: BaseException) -> None:
    """Says what a stopped run leaves for the next one."""
    if segments.finished and not isinstance(error, InputError):
        _warn(
            f"{segments.safe} finished frames are kept in {segments.folder}; the same command "
            "goes on from there"
        )


def _expected(source: reading.Source, args: argparse.Namespace) -> int:
    """How many pictures of the source will be used, about."""
    count, rate = source.survey.count, source.survey.rate
    end = count if args.end is None else min(count, int(args.end * rate) + 1)
    return max(1, end - int((args.start or 0) * rate))


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


def summary(out: str, done: Done, seconds: float) -> str:
    """The line a user reads when a video is done."""
    tally, layout = done.tally, done.layout
    left = [f"{n} {what}" for n, what in ((tally.cuts, "cuts"), (tally.pauses, "pauses")) if n]
    kept = f", {' and '.join(left)} left as they are" if left else ""
    held = f", in {tally.held} gaps something held that jumped too far" if tally.held else ""
    return (
        f"{out}: {tally.written} frames of {layout.width}x{layout.height} from {tally.given}, "
        f"{float(done.rate):.5g} a second{kept}{held}; done after {seconds:.0f} s"
    )


def _warn(line: str) -> None:
    tqdm.write(f"mv2: warning: {line}", file=sys.stderr)
