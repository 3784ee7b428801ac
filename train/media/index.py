"""What a source holds: every file's size and length, found once and kept; and what is broken."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mv2_jax import files
from mv2_jax.errors import InputError
from mv2_jax.infer.cache import user_cache
from mv2_jax.train import processes
from mv2_jax.train.latents import fingerprint
from mv2_jax.train.media.decode import Info, probe
from mv2_jax.train.media.records import Records

VERSION = 1  # of what is kept
MANY = 2000  # files above which a person is told that they are looked through


@dataclass(frozen=True)
class Index:
    """What is known of each sample, None for those that cannot be used, and why they cannot."""

    infos: list[Info | None]
    broken: dict[int, str] = field(default_factory=dict)

    @property
    def usable(self) -> list[int]:
        return [number for number, info in enumerate(self.infos) if info is not None]


def scan(records: Records, threads: int, captioned: bool) -> Index:
    """Looks at every file's header and first frame, in threads.

    What was found is kept in the user's cache under the source's facts.

    Args:
        captioned: what has no caption cannot be used.
    """
    about = {"version": VERSION, "captioned": captioned, **records.facts()}
    kept = user_cache() / "index" / f"{fingerprint(about)}.json"
    found = _kept(kept, len(records))
    if found is not None:
        return found
    if len(records) > MANY:
        processes.say(f"looking through {len(records)} files, once")

    def one(number: int) -> Info | str:
        try:
            info = _spanned(probe(records.peek(number)), records.span(number))
            if captioned and not records.captions(number):
                return "it has no caption"
            return info
        except InputError as error:
            return " ".join(str(error).split())
        except OSError as error:
            faults.append(number)  # of the disk or the network: it may be there next time
            return " ".join(str(error).split())

    faults: list[int] = []

    with ThreadPoolExecutor(threads) as pool:
        seen = list(pool.map(one, range(len(records))))
    index = Index(
        [None if isinstance(each, str) else each for each in seen],
        {number: each for number, each in enumerate(seen) if isinstance(each, str)},
    )
    if processes.first() and not faults:
        _keep(kept, index)
    return index


def _spanned(info: Info, span: tuple[float, float | None]) -> Info:
    """What is known of a part of a video."""
    begin, end = span
    if info.still or (begin == 0 and end is None):
        return info
    last = info.seconds if end is None else min(end, info.seconds)
    if last <= begin:
        raise InputError(f"the video has nothing after {begin:g} s: it ends at {info.seconds:g} s")
    seconds = last - begin
    return Info(info.height, info.width, 1 + int(seconds * info.fps), info.fps, seconds)


def _kept(path: Path, count: int) -> Index | None:
    try:
        held = json.loads(path.read_text())
        infos = [None if each is None else Info(*each) for each in held["infos"]]
        broken = {int(number): why for number, why in held["broken"].items()}
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return Index(infos, broken) if len(infos) == count else None


def _keep(path: Path, index: Index) -> None:
    """Writes an index; where the cache cannot be written, it is made again next time."""
    rows = [None if info is None else list(asdict(info).values()) for info in index.infos]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.whole(path) as scratch:
            scratch.write_text(json.dumps({"infos": rows, "broken": index.broken}))
    except OSError:
        return


def summary(broken: Mapping[str, str], total: int, most: int = 5) -> str:
    """One line of what cannot be used: how many, which, and why."""
    named = [f"{name} ({why})" for name, why in list(broken.items())[:most]]
    more = f" and {len(broken) - most} more" if len(broken) > most else ""
    return f"{len(broken)} of {total} files are left out: {', '.join(named)}{more}"
