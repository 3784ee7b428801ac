"""People's own clips and pictures as a training source: `Media`, any kinds of `Records` mixed."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mv2_jax.errors import InputError
from mv2_jax.lookup import find
from mv2_jax.train import processes
from mv2_jax.train.media import settings as own_settings
from mv2_jax.train.media.index import scan, summary
from mv2_jax.train.media.pipeline import Rows, in_threads
from mv2_jax.train.media.plan import Pick, Plan
from mv2_jax.train.media.records import RECORDS, Records
from mv2_jax.train.media.samples import MixedSource, Sample, Size, nearest_size, sample, sizes_of
from mv2_jax.train.media.turns import Turn
from mv2_jax.train.source import Arrays, Source
from mv2_jax.train.task import Component


class Streamed(Source):
    """A source whose samples are read as steps need them, in threads; nothing of them is kept.

    A subclass says which samples can be seen as a kind of step, and reads one.
    """

    streams = True

    @abstractmethod
    def buckets(self, turn: Turn, factor: int) -> dict[Any, dict[int, list[int]]]:
        """What can be seen as this kind: {(frames, size): {source: numbers}}."""

    @abstractmethod
    def weights(self) -> dict[int, float] | None:
        """How much each source gives; None: by their numbers of samples."""

    @abstractmethod
    def load(self, plan: Plan, kind: int, key: Any, pick: Pick) -> Sample:
        """A sample, in the bucket `key` of the kind of steps that has this number."""

    def fits(
        self, begin: Mapping[str, Component], turns: Sequence[Turn], rows: int, train: Sequence[str]
    ) -> None:
        """Raises InputError where samples are not what a phase could use: files always are."""

    def stream(
        self,
        turns: Sequence[Turn],
        rows: Callable[[int], np.ndarray],
        factor: int,
        seed: int,
        start: int,
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Samples of one step after another, without end: (the step, the rows of this process).

        Args:
            turns: kinds of steps; step n is of the kind that has n % (all turns) among its own.
            rows: which rows of a batch of so many are this process's.
            factor: pixels along a latent cell.
            seed, start: of the phase, and its first step.

        Raises:
            InputError: a kind of step has no samples.
        """
        cycle = sorted((turn, kind) for kind, one in enumerate(turns) for turn in one.turns)
        plans = [self._plan(one, factor, seed + kind) for kind, one in enumerate(turns)]
        kinds = [kind for _, kind in cycle]
        order = Rows(kinds, [rows(one.batch) for one in turns])

        def load(place: int) -> Sample:
            step, kind, row = order.at(place)
            key, picks = plans[kind].step(order.own_step(step))
            return self.load(plans[kind], kind, key, picks[row])

        ahead = self.data["ahead"] * max(len(rows(one.batch)) for one in turns)
        yield from in_threads(load, order, start, self.data["threads"], ahead)

    def _plan(self, turn: Turn, factor: int, seed: int) -> Plan:
        buckets = self.buckets(turn, factor)
        if not buckets:
            pace = f"{turn.frames} frames at data.fps {self.data['fps']:g}"
            raise InputError(
                f"data: none of {self.length} samples is long enough for {pace}; ask for fewer "
                "frames (data.frames) or a quicker pace (data.fps)"
            )
        return Plan(buckets, self.weights(), turn.batch, seed)


class Media(Streamed):
    """A mixture of people's own files. See `train.media.settings` for what `data` holds.

    Raises:
        InputError: a source that is not there or holds nothing that can be used, or settings that
            cannot be.
    """

    def __init__(self, data: Mapping[str, Any], seed: int) -> None:
        super().__init__(own_settings.check(data), seed)
        mixed = [{**self.data, **each} for each in self.data["mix"]] or [self.data]
        weighed = [each for each in mixed if "weight" in each]
        if weighed and len(weighed) < len(mixed):
            raise InputError("data.mix: give all of the sources a weight, or none")
        self.parts = [self._part(each) for each in mixed]
        self.places = [
            (which, number) for which, part in enumerate(self.parts) for number in part.index.usable
        ]
        self.length = len(self.places)
        of_records = [part.records.settings for part in self.parts]
        if None not in of_records:
            own = tuple(name for names in of_records for name in names)
            reads = {"clips": own_settings.FILES, "stream": own_settings.STREAMED}
            reads |= dict.fromkeys(("pictures", "triplets"), own_settings.FILES)
            self.settings = {use: (*names, *own) for use, names in reads.items()}

    def _part(self, settings: dict[str, Any]) -> MixedSource:
        name = settings["source"]
        records = find(name, RECORDS, "data source", fits=callable, wants="Records")(settings)
        if not isinstance(records, Records):
            raise InputError(f"data.source: {name!r} makes a {type(records).__name__}, no Records")
        index = scan(records, settings["threads"], settings["captioned"])
        where = settings["root"] or name
        broken = {records.name(number): why for number, why in index.broken.items()}
        broken |= {path: "there is no such file" for path in getattr(records, "missing", ())}
        total = len(records) + len(getattr(records, "missing", ()))
        if not index.usable:
            raise InputError(f"data.root: nothing in {where} can be used: {summary(broken, total)}")
        if broken:
            processes.say(f"{where}: {summary(broken, total)}")
        return MixedSource(records, index, settings, settings.get("weight"))

    def facts(self) -> Mapping[str, Any]:
        keys = ("fps", "stride", "frames", "clip", "aspects", "aspect_step", "aspect_most", "crop",
                "flip", "passes")  # fmt: skip
        parts = [{**part.records.facts(), "weight": part.weight} for part in self.parts]
        return {"seed": self.seed, "parts": parts, "take": {key: self.data[key] for key in keys}}

    def read(self, numbers: Any, frames: int, size: Size) -> tuple[Any, Arrays]:
        """Clips from the middle of each file, cut in the middle; pictures stand still."""
        found = []
        for number in np.asarray(numbers):
            which, own = self.places[int(number)]
            part = self.parts[which]
            try:
                found.append(sample(part, own, frames, tuple(size), None).arrays["pixels"])
            except (InputError, OSError) as error:
                self._report(which, own, error)
                found.append(np.full((frames, *size, 3), 127, np.uint8))
        clips = np.float32(np.stack(found)) / 127.5 - 1
        return clips, {"number": np.asarray(numbers, np.int32)}

    def captions(self, notes: Arrays, seed: int, step: int) -> list[str]:
        random = np.random.default_rng([seed, step])
        made = []
        for number, draw in zip(notes["number"], random.random(len(notes["number"]))):
            which, own = self.places[int(number)]
            all_ = self.parts[which].records.captions(own)
            made.append(all_[int(draw * len(all_))] if all_ else "")
        return made

    def examples(self, count: int) -> list[str]:
        return self.captions({"number": np.arange(count) % self.length}, 0, 0)

    def buckets(self, turn: Turn, factor: int) -> dict[Any, dict[int, list[int]]]:
        """What of the sources can be seen as this kind: {(frames, size): {source: numbers}}.

        Pictures are those of the sources; where these hold none, frames of their clips.
        """
        still = turn.frames == (1,)
        pictures = still and any(
            part.index.infos[n].still for part in self.parts for n in part.index.usable
        )
        found: dict[Any, dict[int, list[int]]] = {}
        for which, part in enumerate(self.parts):
            sizes = sizes_of(turn.size, part.settings, factor)
            for number in part.index.usable:
                info = part.index.infos[number]
                if info.still != still if (pictures or not still) else False:
                    continue
                frames = part.longest(info, turn.frames)
                if frames is None:
                    continue
                key = (frames, nearest_size(info, sizes))
                found.setdefault(key, {}).setdefault(which, []).append(number)
        return found

    def load(self, plan: Plan, kind: int, key: Any, pick: Pick) -> Sample:
        """A sample; where its file cannot be decoded, that of the next one in its bucket.

        What was broken before is tried again: another part of it may not be, and a resumed run
        does not know of it.
        """
        part, (frames, size) = self.parts[pick.source], key
        for each in itertools.chain([pick], plan.others(key, pick)):
            try:
                return self.one(each, key)
            except (InputError, OSError) as error:
                self._report(each.source, each.number, error)
        raise InputError(
            f"data.root: none of the files of {part.settings['root']} for {frames} frames of "
            f"{size[1]}x{size[0]} can be decoded: "
            + summary({part.records.name(n): w for n, w in part.failed.items()}, len(part.records))
        )

    def one(self, pick: Pick, key: Any) -> Sample:
        """A sample itself. Raises InputError or OSError where it cannot be decoded."""
        frames, size = key
        return sample(self.parts[pick.source], pick.number, frames, size, self._random(pick))

    def weights(self) -> dict[int, float] | None:
        given = {n: p.weight for n, p in enumerate(self.parts) if p.weight is not None}
        return given or None

    @property
    def broken(self) -> dict[str, str]:
        """What cannot be used, and why."""
        found: dict[str, str] = {}
        for part in self.parts:
            found |= {part.records.name(n): why for n, why in part.index.broken.items()}
            found |= dict.fromkeys(getattr(part.records, "missing", ()), "there is no such file")
            found |= {part.records.name(n): why for n, why in part.failed.items()}
        return found

    def _random(self, pick: Pick) -> np.random.Generator:
        visit = pick.visit % self.data["passes"] if self.data["passes"] else pick.visit
        return np.random.default_rng([self.seed, pick.source, pick.number, visit])

    def _report(self, which: int, number: int, error: Exception) -> None:
        """Counts and names a file that turns out to be broken, once."""
        part = self.parts[which]
        if number not in part.failed:
            part.failed[number] = " ".join(str(error).split())
            name = part.records.name(number)
            count = sum(len(each.failed) for each in self.parts)
            print(
                f"{name} is left out ({part.failed[number]}); {count} so far, in process "
                f"{jax.process_index()}",
                flush=True,
            )
