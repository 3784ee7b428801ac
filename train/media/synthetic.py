"""Clips of noise that need no decoding: how fast training is when data costs nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mv2_jax.errors import InputError
from mv2_jax.train.media.records import Content, Frames, Records

USUAL = "256x256x64"  # width, height, frames


class Synthetic(Records):
    """`data.count` clips of one piece of noise; `data.root` is WIDTHxHEIGHTxFRAMES, or empty.

    Raises:
        InputError: another kind of root.
    """

    settings = ("count",)

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__(data)
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", str(data.get("root") or USUAL))
        if not match or not all(map(int, match.groups())):
            raise InputError(f"data.root: {data['root']!r} is no WIDTHxHEIGHTxFRAMES, as {USUAL}")
        width, height, frames = map(int, match.groups())
        noise = np.random.default_rng(0).integers(256, size=(frames, height, width, 3))
        self.pixels = noise.astype(np.uint8)

    def __len__(self) -> int:
        return int(self.data["count"])

    def facts(self) -> Mapping[str, Any]:
        return {"synthetic": self.pixels.shape, "count": len(self), "fps": self.data["fps"]}

    def name(self, number: int) -> str:
        return f"noise[{number}]"

    def content(self, number: int) -> Content:
        return Frames(self.pixels, self.data["fps"] or 8.0)

    def captions(self, number: int) -> Sequence[str]:
        return (f"noise number {number}",)
