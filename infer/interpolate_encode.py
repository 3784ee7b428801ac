"""Encoded pictures of `mv2 interpolate`, kept on disk a segment at a time.

A segment is encoded by itself, from a picture that needs no other, so that a finished one outlives
whatever stops the program: the next run of the same command takes up behind the last of them.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from mv2_jax.infer import interpolate_pictures as pictures
from mv2_jax.infer.interpolate_codecs import Encoder
from mv2_jax.infer.interpolate_pictures import Planes

PICTURES, SECONDS = 240, 30.0
"""A segment ends with the first picture given that is beyond both: this many pictures, and this
long a work."""
_RECORD = struct.Struct("<q?I")  # ticks, whether it needs no other picture, bytes


@dataclass(frozen=True)
class Coded:
    """A packet of the encoder: when it is shown, in ticks, and where its bytes are."""

    ticks: int
    key: bool
    where: tuple[Path, int, int] | None  # file, offset, length
    packet: av.Packet | None = None  # kept itself, where it carries more than bytes

    def bytes(self) -> bytes:
        path, offset, length = self.where
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(length)


class Segments:
    """Pictures on their way into segments. `done` of them were there already, and are not wanted
    again, and `safe` of them are in finished segments now; `note` is what the last one there was
    given to keep."""

    def __init__(self, folder: Path, encoder: Encoder):
        self.folder, self.encoder = folder, encoder
        self.done, self.safe, self.note = 0, 0, None
        self._packets: list[Coded] = []
        self._segments = 0
        self._last = -1
        self._recall()
        self.count = self.done
        self._scratch: Any = None
        self._context: Any = None

    def _recall(self) -> None:
        """Takes up the segments that an earlier run finished."""
        while (path := self._path(self._segments)).is_file():
            try:
                packets, about = _read(path)
            except (OSError, ValueError, struct.error):
                break
            self._packets += packets
            self._last = max(packet.ticks for packet in packets)
            self.done, self.note = about["pictures"], about["note"]
            self._segments += 1
        self.safe = self.done

    @property
    def finished(self) -> int:
        """How many segments are on disk."""
        return self._segments

    def picture(self, planes: Planes, time: Fraction) -> None:
        """Encodes a picture to be shown from `time` on, in seconds."""
        if self._context is None:
            self._begin()
        self._last = max(round(time / self.encoder.clock), self._last + 1)
        frame = pictures.write(planes, self.encoder.layout, self.encoder.stored)
        frame.pts, frame.time_base = self._last, self.encoder.clock
        self._keep(self._context.encode(frame))
        self.count += 1
        self._shown += 1

    def boundary(self, note: Callable[[], Any]) -> None:
        """Says that all before this stands by itself; ends the segment once it is long enough."""
        long = self._shown >= PICTURES and time.monotonic() - self._since >= SECONDS
        if self._context is not None and long and not self._whole:
            self.end(note())

    def end(self, note: Any = None) -> None:
        """Ends the segment."""
        if self._context is None:
            return
        self._keep(self._context.encode(None))
        self._context = None
        about = json.dumps({"pictures": self.count, "note": note}).encode()
        self._scratch.write(about + struct.pack("<I", len(about)))
        self._scratch.flush()
        os.fsync(self._scratch.fileno())
        self._scratch.close()
        path = self._path(self._segments)
        os.replace(self._scratch.name, path)
        self._packets += [
            Coded(p.ticks, p.key, p.where and (path, *p.where[1:]), p.packet) for p in self._new
        ]
        self._segments += 1
        self.safe = self.count

    def packets(self) -> list[Coded]:
        """All that was encoded, in the order of decoding."""
        return self._packets

    def close(self) -> None:
        """Closes what is open; an unfinished segment is lost."""
        if self._scratch is not None and not self._scratch.closed:
            self._scratch.close()
            os.unlink(self._scratch.name)

    def remove(self) -> None:
        """Removes the folder."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._context = self.encoder.opened()
        self._scratch = open(self.folder / "unfinished", "wb")
        self._new: list[Coded] = []
        self._shown, self._since, self._whole = 0, time.monotonic(), False

    def _keep(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            if packet.has_sidedata("matroska_block_additional"):
                # Alpha of VP9, which PyAV cannot put back into a packet: it stays in memory.
                self._whole = True
                self._new.append(Coded(packet.pts, packet.is_keyframe, None, packet))
                continue
            data = bytes(packet)
            self._scratch.write(_RECORD.pack(packet.pts, packet.is_keyframe, len(data)))
            where = (Path(self._scratch.name), self._scratch.tell(), len(data))
            self._scratch.write(data)
            self._new.append(Coded(packet.pts, packet.is_keyframe, where))

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06}"


def _read(path: Path) -> tuple[list[Coded], dict[str, Any]]:
    """The packets of a finished segment, and what was noted with it."""
    size, found = path.stat().st_size, []
    with open(path, "rb") as file:
        file.seek(size - 4)
        (length,) = struct.unpack("<I", file.read(4))
        end = size - 4 - length
        file.seek(end)
        about = json.loads(file.read(length))
        file.seek(0)
        while file.tell() < end:
            ticks, key, count = _RECORD.unpack(file.read(_RECORD.size))
            found.append(Coded(ticks, key, (path, file.tell(), count)))
            file.seek(count, os.SEEK_CUR)
    return found, about


def timed(packets: list[Coded], lasts: int) -> Iterator[tuple[Coded, int, int]]:
    """Every packet with when it is to be decoded and how long its picture is shown, in ticks.

    Args:
        lasts: ticks of the last picture, 0 where nobody says.
    """
    shown = sorted(packet.ticks for packet in packets)
    rank = {ticks: k for k, ticks in enumerate(shown)}
    # Pictures are decoded before others that are shown earlier: so many are waited for.
    delay = max((n - rank[packet.ticks] for n, packet in enumerate(packets)), default=0)
    ahead = shown[min(delay, len(shown) - 1)] - shown[0] if shown else 0
    usual = shown[-1] - shown[-2] if len(shown) > 1 else 1
    until = {a: b - a for a, b in itertools.pairwise(shown)}
    due = None
    for n, packet in enumerate(packets):
        before, due = due, shown[n] - ahead if n < delay else shown[n - delay]
        if n and n == len(packets) - 1 and packet.ticks == shown[-1]:
            # MP4 takes a film to be as long as the times of decoding say.
            due = max(before + 1, min(packet.ticks, packet.ticks - ahead))
        yield packet, due, until.get(packet.ticks, lasts or usual)
