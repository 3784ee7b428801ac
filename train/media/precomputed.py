"""Samples that `mv2 precompute` made, as a training source."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

from mv2_jax.errors import InputError
from mv2_jax.train import needs
from mv2_jax.train.media import settings as own_settings
from mv2_jax.train.media.array_records import ARRAY_RECORD, opened
from mv2_jax.train.media.plan import Pick, Plan
from mv2_jax.train.media.precompute import INDEX, VERSION, Item, networks
from mv2_jax.train.media.samples import Sample
from mv2_jax.train.media.source import Streamed
from mv2_jax.train.media.turns import Turn
from mv2_jax.train.source import Arrays
from mv2_jax.train.task import Component

# What is not taken where the network that made it is in training.
MADE_BY = {"text_encoder": "text_", "text_encoder_2": "text_", "image_encoder": "image_features"}


class Precomputed(Streamed):
    """The samples in the folder `data.root`, in the order in which the source's would come.

    Raises:
        InputError: no such folder, or parts of it are missing.
    """

    def __init__(self, data: Mapping[str, Any], seed: int) -> None:
        super().__init__(own_settings.check(data), seed)
        needs.check("data.source=precomputed", ARRAY_RECORD, "data")
        self.folder = Path(data["root"])
        try:
            self.index = json.loads((self.folder / INDEX).read_text())
        except (OSError, ValueError):
            raise InputError(
                f"data.root: {self.folder} is no folder that mv2 precompute made"
            ) from None
        if self.index.get("version") != VERSION:
            raise InputError(f"data.root: {self.folder} was made by another version: make it again")
        self._check_made(data)
        self.items = [Item(*row) for row in self.index["items"]]
        places, parts = self._parts()
        self.places = {
            (item.turn, item.source, item.number, item.visit): place
            for item, place in zip(self.items, places)
            if place is not None
        }
        self.records = opened([str(part) for part in parts])
        self.length, self.dropped = len(self.places), ()
        self._row = lru_cache(maxsize=8)(lambda place: load(self.records[place]))

    def _check_made(self, data: Mapping[str, Any]) -> None:
        """Refuses settings that say otherwise than those the samples were made with."""
        for name, made in self.index.get("take", {}).items():
            usual = own_settings.DEFAULTS[name]
            asked = data.get(name, usual)
            if asked != usual and json.loads(json.dumps(asked)) != made:
                raise InputError(
                    f"data.{name} has no effect: {self.folder} was made with {made!r}, not "
                    f"{asked!r}; mv2 precompute makes it again"
                )

    def facts(self) -> Mapping[str, Any]:
        return {"precomputed": self.index["facts"], "made_by": self.index["made_by"]}

    def read(self, numbers: Any, frames: int, size: tuple[int, int]) -> tuple[Any, Arrays]:
        """The first frames, standing still: for sample sheets; what is kept has no others."""
        from mv2_jax.train.media.decode import cover

        found = []
        for number in np.asarray(numbers):
            image = self._row(list(self.places.values())[int(number)])["image"]
            found.append(np.repeat(cover(image, tuple(size), (0.5, 0.5))[0][None], frames, 0))
        notes = {"number": np.asarray(numbers, np.int32)}
        return np.float32(np.stack(found)) / 127.5 - 1, notes

    def captions(self, notes: Arrays, seed: int, step: int) -> list[str]:
        places = list(self.places.values())
        return [self._caption(self._row(places[int(number)])) for number in notes["number"]]

    def examples(self, count: int) -> list[str]:
        held = self.index["examples"]
        return [held[n % len(held)] for n in range(count)]

    def fits(
        self, begin: Mapping[str, Component], turns: Sequence[Turn], rows: int, train: Sequence[str]
    ) -> None:
        """Whether these samples are what a phase would make itself.

        Raises:
            InputError: they are of other sizes, or made by other networks.
        """
        asked = [[list(turn.frames), list(turn.size)] for turn in turns]
        if asked != self.index["turns"]:
            raise InputError(
                f"data.root: {self.folder} has {_said(self.index['turns'])}, and this phase sees "
                f"{_said(asked)}"
            )
        now = networks(begin)
        self.dropped = tuple({MADE_BY[name] for name in train if name in MADE_BY})
        for name, digest in self.index["made_by"].items():
            if MADE_BY.get(name) in self.dropped:
                continue
            if now.get(name) != digest:
                raise InputError(
                    f"data.root: {self.folder} was made by another {name} than training begins from"
                )
        if "text_" not in self.dropped and rows != self.index["rows"]:
            raise InputError(
                f"data.root: {self.folder} has captions in {self.index['rows']} rows: set "
                f"data.caption_rows={self.index['rows']}"
            )

    def buckets(self, turn: Turn, factor: int) -> dict[Any, dict[int, list[int]]]:
        kind = self.index["turns"].index([list(turn.frames), list(turn.size)])
        found: dict[Any, dict[int, list[int]]] = {}
        for item in self.items:
            at = (kind, item.source, item.number)
            if item.turn != kind or item.visit:
                continue
            if all((*at, visit) in self.places for visit in range(self.index["passes"])):
                found.setdefault(item.key, {}).setdefault(item.source, []).append(item.number)
        return found

    def weights(self) -> dict[int, float] | None:
        held = self.index["weights"]
        return None if None in held else dict(enumerate(held))

    def load(self, plan: Plan, kind: int, key: Any, pick: Pick) -> Sample:
        visit = pick.visit % self.index["passes"]
        row = dict(self._row(self.places[kind, pick.source, pick.number, visit]))
        caption = self._caption(row)
        row.pop("caption")
        return Sample(
            caption,
            {n: x for n, x in row.items() if not n.startswith(self.dropped or ("\0",))},
        )

    def _caption(self, row: Mapping[str, np.ndarray]) -> str:
        return row["caption"].tobytes().decode("utf-8", "replace").strip()

    def _parts(self) -> tuple[list[int | None], list[Path]]:
        """Where each item's record is among those of all parts; None for those that could not be
        made."""
        size, places, count = self.index["size"], [], 0
        parts = [
            self.folder / f"part-{n:05d}.array_record" for n in range(-(-len(self.items) // size))
        ]
        missing = [part for part in parts if not part.with_suffix(".json").is_file()]
        if missing:
            raise InputError(
                f"data.root: {len(missing)} of {len(parts)} parts of {self.folder} are missing: "
                "run mv2 precompute again"
            )
        for n, part in enumerate(parts):
            failed = json.loads(part.with_suffix(".json").read_text())["failed"]
            for place in range(len(self.items[n * size : (n + 1) * size])):
                gone = str(place) in failed
                places.append(None if gone else count)
                count += not gone
        return places, parts


def _said(turns: Sequence[Any]) -> str:
    return ", ".join(
        f"{'/'.join(map(str, frames))} frames of {size[1]}x{size[0]}" for frames, size in turns
    )
