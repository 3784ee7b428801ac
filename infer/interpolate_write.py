"""The writing end of `mv2 interpolate`: segments and passengers, put into one file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from mv2_jax import files
from mv2_jax.errors import InputError
from mv2_jax.infer import frames
from mv2_jax.infer import interpolate_passengers as passengers
from mv2_jax.infer.interpolate_codecs import FORMATS, SUFFIXES, Encoder
from mv2_jax.infer.interpolate_encode import Segments, timed
from mv2_jax.infer.interpolate_read import Source
from mv2_jax.infer.interpolate_timeline import Span
from mv2_jax.lookup import nearest

try:
    import fcntl
except ImportError:
    fcntl = None


@dataclass(frozen=True)
class Film:
    """A video file to be written: what is encoded how, and who travels along."""

    path: str
    encoder: Encoder
    plan: passengers.Plan
    span: Span

    def segments(self, key: str) -> Any:
        """Where its pictures go, see `segments`; the file is written by `write`."""
        return segments(self.path, self.encoder, key)

    def write(self, source: Source, segments: Segments, lasts: Fraction) -> int:
        """Puts the file together. `lasts` are the seconds of the last picture.

        Returns:
            How many packets of sound and subtitles were too damaged to be copied.

        Raises:
            OSError: it cannot be written.
        """
        kind = FORMATS[Path(self.path).suffix.lower()]
        options = {"movflags": self._flags(source)} if kind in ("mp4", "mov") else {}
        with (
            told(self.path),
            files.whole(self.path) as scratch,
            av.open(frames.address(scratch), "w", format=kind, options=options) as out,
            _reopened(source) as given,
        ):
            video = out.add_stream(self.encoder.name, rate=self.encoder.rate)
            self.encoder.setup(video.codec_context)
            if self.encoder.tag and kind in ("mp4", "mov"):
                video.codec_context.codec_tag = self.encoder.tag
            if self.encoder.layout.alpha and kind in ("matroska", "webm"):
                video.metadata["alpha_mode"] = "1"
            carrier = None
            if given is not None:
                carrier = passengers.Carrier(given, out, self.plan, self.span)
                carrier.about(video, given.streams[source.stream.index])
            out.start_encoding()
            others = carrier.packets() if carrier else iter(())
            ended = round(lasts / self.encoder.clock)
            damaged = _mux(out, _films(video, segments, ended, self.encoder.clock), others)
        segments.remove()
        return damaged

    def _flags(self, source: Source) -> str:
        # QuickTime's own names of place, maker and the like have no place in an MP4 otherwise.
        metadata = source.container.metadata if source.container is not None else {}
        keyed = any(key.startswith("com.apple.quicktime") for key in metadata)
        return "+faststart" + "+use_metadata_tags" * keyed


@contextmanager
def segments(path: str, encoder: Encoder, key: str) -> Iterator[Segments]:
    """Where pictures for a file `path` go.

    What an earlier run with the same key finished is there already. When the block is left by an
    error, finished segments stay, and `Segments.finished` tells how many.

    Raises:
        InputError: another process is at the very same work.
    """
    folder = Path(path).with_name(f".{Path(path).name[:60]}.resume-{key}")
    with told(path), _alone(folder, path):
        made = Segments(folder, encoder)
        try:
            yield made
        except BaseException:
            made.close()
            if not made.finished:
                made.remove()
            raise


@contextmanager
def _alone(folder: Path, path: str) -> Iterator[None]:
    """Holds a folder of segments, which nobody else then takes up; a killed process lets it go."""
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:  # on Windows
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise InputError(f"another run is writing {path} from the same video") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(held)


def _films(
    stream: Any, segments: Segments, lasts: int, clock: Fraction
) -> Iterator[tuple[Fraction, av.Packet]]:
    """The encoder's packets, and when they are to be decoded."""
    for coded, due, length in timed(segments.packets(), lasts):
        packet = coded.packet if coded.packet is not None else av.Packet(coded.bytes())
        packet.stream, packet.time_base = stream, clock
        packet.pts, packet.dts, packet.duration = coded.ticks, due, length
        packet.is_keyframe = coded.key
        yield due * clock, packet


def _mux(out: Any, first: Iterator, second: Iterator) -> int:
    """Writes two streams of packets, the earlier one next; returns how many of the second are too
    damaged to be written."""
    ahead, damaged = [next(first, None), next(second, None)], 0
    while any(ahead):
        k = int(ahead[0] is None or (ahead[1] is not None and ahead[1][0] < ahead[0][0]))
        try:
            out.mux(ahead[k][1])
        except av.error.InvalidDataError:
            if k == 0:
                raise
            damaged += 1
        ahead[k] = next((first, second)[k], None)
    return damaged


@contextmanager
def _reopened(source: Source) -> Iterator[Any]:
    """The source's file once more, from its start; None where it is no single file."""
    if source.container is None:
        yield None
    else:
        with frames.opened(source.path) as container:
            yield container


@contextmanager
def told(path: str) -> Iterator[None]:
    """FFmpeg's errors over the file `path` as one line."""
    try:
        yield
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or "the encoder failed"
        raise OSError(f"cannot write {path}: {reason.lower()}") from None


def key_of(source: str, *parts: Any) -> str:
    """What tells one piece of work from another: the source as it is now, and all that matters."""
    of = hashlib.sha256()
    with suppress(OSError):
        about = os.stat(source)
        of.update(repr((os.path.abspath(source), about.st_size, about.st_mtime_ns)).encode())
    of.update(repr(parts).encode())
    return of.hexdigest()[:12]


def check(path: str | os.PathLike[str], source: str | os.PathLike[str], force: bool) -> None:
    """Finds out whether `path` can be written, before any work is done.

    Raises:
        InputError: it is the source itself, is there already, has a suffix that is none of
            `SUFFIXES`, or its folder is missing or cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix and suffix not in SUFFIXES:
        raise InputError(
            f"cannot write {path}: a name ends in one of {', '.join(SUFFIXES)}, or has no suffix "
            f"for a folder of PNG{nearest(suffix, SUFFIXES)}"
        )
    if Path(path).exists() and Path(source).exists() and os.path.samefile(path, source):
        raise InputError(f"{path} is the video to read; give the new one another name")
    try:
        files.check(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"cannot write {path}: {reason}") from None
    if Path(path).exists() and not force:
        raise InputError(f"{path} is there already; --force replaces it")
