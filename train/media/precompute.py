"""`mv2 precompute SOURCE -o DIR`: what frozen networks make of a source, once, in shards.

A folder holds `index.json` (the samples, and what made them) and parts of some hundred samples
each, ArrayRecord files of safetensors: latents and the first frame, what the image encoder says of
it, and the caption's states. A part is written under another name and renamed, and its JSON last:
run again, or on several machines, the command makes what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from mv2_jax import files, params
from mv2_jax.errors import InputError
from mv2_jax.models import clip_vision, image_projection
from mv2_jax.stages import latents, stage
from mv2_jax.stages.conditions.image import ImageTokens
from mv2_jax.stages.conditions.text import Text
from mv2_jax.train import words as tokens
from mv2_jax.train.latents import fingerprint, of_encoder
from mv2_jax.train.media.array_records import write
from mv2_jax.train.media.plan import Pick
from mv2_jax.train.media.samples import Sample
from mv2_jax.train.media.turns import Turn
from mv2_jax.train.task import Component

INDEX = "index.json"
VERSION = 1


@dataclass(frozen=True)
class Item:
    """A sample to be kept: of which kind of step, of which source, seen for the how manieth time,
    and at which length and size."""

    turn: int
    source: int
    number: int
    visit: int
    frames: int
    height: int
    width: int

    @property
    def key(self) -> tuple[int, tuple[int, int]]:
        return self.frames, (self.height, self.width)


def items_of(source: Any, turns: Sequence[Turn], factor: int, passes: int) -> list[Item]:
    """All samples of a source, those of one shape side by side."""
    return [
        Item(kind, which, int(number), visit, frames, *size)
        for kind, turn in enumerate(turns)
        for (frames, size), held in sorted(source.buckets(turn, factor).items())
        for which, numbers in sorted(held.items())
        for number in numbers
        for visit in range(passes)
    ]


def networks(begin: Mapping[str, Component]) -> dict[str, str]:
    """Digests of the networks whose answers are kept."""
    made = {
        name: params.digest(begin[name].params)
        for name in ("text_encoder", "text_encoder_2", "image_encoder")
        if name in begin
    }
    return {**made, "vae": of_encoder(begin["vae"].params)}


class Encoder:
    """What the frozen networks of a task make of samples.

    Args:
        net, words, rows: of the task; begin: its components.
    """

    def __init__(
        self, net: stage.Config, begin: Mapping[str, Component], words: Any, rows: int
    ) -> None:
        self.net, self.words, self.rows = net, words, rows
        self.text = next((c for c in net.conditions if isinstance(c, Text)), None)
        self.image = next((c for c in net.conditions if isinstance(c, ImageTokens)), None)
        wanted = ["vae", *(self.text.trees if self.text else ())]
        wanted += ["image_encoder"] if self.image else []
        self.held = {n: params.cast(begin[n].params, np.float32) for n in wanted}
        self.vae = begin["vae"].config
        self._run = jax.jit(self._encode)

    def __call__(self, samples: Sequence[Sample], fill: int) -> list[dict[str, np.ndarray]]:
        """Arrays of each sample; they are made `fill` at a time, so that one program serves."""
        filled = [samples[min(n, len(samples) - 1)] for n in range(fill)]
        pixels = np.stack([one.arrays["pixels"] for one in filled])
        ids = tokens.encode(self.words, [one.caption for one in filled], self.rows)
        made = jax.device_get(self._run(self.held, pixels, ids))
        return [
            {
                **{name: np.asarray(x[n]) for name, x in made.items()},
                "image": one.arrays["pixels"][0],
                "size_ids": one.arrays["size_ids"],
            }
            for n, one in enumerate(samples)
        ]

    def _encode(self, held: Any, pixels: jax.Array, ids: jax.Array) -> dict[str, jax.Array]:
        x = pixels.astype(jnp.float32) / 127.5 - 1.0
        made = {"latent": latents.encode(held["vae"], self.vae, x)}
        if self.text:
            null = jnp.asarray(self.words.encode([""])[0])
            inputs = stage.in_rows({"ids": ids, "null_ids": null})
            prompt = self.text.prompt(held, self.net, inputs.get("ids", ids))
            made["text_states"] = prompt.text
            if prompt.pooled is not None:
                made["text_pooled"] = prompt.pooled
        if self.image:
            vision = clip_vision.VisionEncoder(self.image.vision, self.net.dtype)
            seen = clip_vision.preprocess(x[:, 0], self.image.vision.image_size)
            output = vision.apply({"params": held["image_encoder"]}, seen)
            kind = self.image.projection.kind
            made["image_features"] = image_projection.features(kind, output)
        return {name: value.astype(jnp.float16) for name, value in made.items()}


def run(
    task: Any, folder: Path, passes: int, size: int, batch: int, part: tuple[int, int]
) -> tuple[int, dict[str, str]]:
    """Makes the parts that are missing of a task's samples; every n-th of them.

    Args:
        task: a `VideoTask` or `PictureTask` over a `Media` source.
        size: samples a part; batch: how many go through the networks at once.
        part: (which share, of how many), from 0.

    Returns:
        How many samples were made, and what could not be: {name: why}.

    Raises:
        InputError: the folder holds something else, or a sample has numbers that half precision
            cannot hold.
    """
    source, turns = task.source, task.turns()
    items = items_of(source, turns, task.net.factor, passes)
    if not items:
        raise InputError("no sample is long enough; ask for fewer frames or a quicker pace")
    index = {
        "version": VERSION,
        "passes": passes,
        "rows": task.rows,
        "size": size,
        "seed": source.seed,
        "turns": [[list(turn.frames), list(turn.size)] for turn in turns],
        "weights": [part_.weight for part_ in source.parts],
        "made_by": networks(task.begin),
        "facts": fingerprint(source.facts()),
        "take": source.facts().get("take", {}),
        "examples": source.examples(256),
        "items": [list(vars(item).values()) for item in items],
    }
    _begun(folder, index)
    encoder, made, broken = Encoder(task.net, task.begin, task.words, task.rows), 0, {}
    parts = -(-len(items) // size)
    for number in range(part[0], parts, part[1]):
        path = folder / f"part-{number:05d}.array_record"
        if path.with_suffix(".json").is_file():
            continue
        chosen = items[number * size : (number + 1) * size]
        records, failed = _part(source, encoder, chosen, batch, task.cfg.data.threads)
        for at, why in failed.items():
            broken[source.parts[chosen[at].source].records.name(chosen[at].number)] = why
        with files.whole(path) as scratch:
            write(str(scratch), records)
        with files.whole(path.with_suffix(".json")) as scratch:
            scratch.write_text(json.dumps({"failed": failed}))
        made += len(records)
        print(f"part {number + 1} of {parts}: {len(records)} samples", flush=True)
    return made, broken


def _begun(folder: Path, index: Mapping[str, Any]) -> None:
    """Writes the index, or finds it as it would be written."""
    path = folder / INDEX
    index = json.loads(json.dumps(index))  # as it will be read: lists in the place of tuples
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        try:
            held = json.loads(path.read_text())
        except ValueError:
            raise InputError(f"{path} is damaged; remove the folder, or name another") from None
        odd = [name for name in index if held.get(name) != index[name]]
        if odd:
            raise InputError(
                f"{folder} holds samples of another source, cascade or settings (its "
                f"{', '.join(odd)}): name another folder with -o"
            )
        return
    if any(folder.iterdir()):
        raise InputError(f"{folder} holds something else: name another folder with -o")
    with files.whole(path) as scratch:
        scratch.write_text(json.dumps(index))


def _part(
    source: Any, encoder: Encoder, items: Sequence[Item], batch: int, threads: int
) -> tuple[list[bytes], dict[int, str]]:
    """The records of a part, and why those that are missing are: {place in the part: why}."""
    records: list[bytes] = []
    failed: dict[int, str] = {}

    def load(place: int) -> Sample | None:
        item = items[place]
        try:
            return source.one(Pick(item.source, item.number, item.visit), item.key)
        except (InputError, OSError) as error:
            failed[place] = " ".join(str(error).split())
            return None

    with ThreadPoolExecutor(threads) as pool:
        for places in _batches(items, batch):
            samples = [s for s in pool.map(load, places) if s is not None]
            if not samples:
                continue
            for sample, arrays in zip(samples, encoder(samples, batch)):
                for name, value in arrays.items():
                    if not np.isfinite(value).all():
                        raise InputError(f"{name} has numbers that half precision cannot hold")
                records.append(save(arrays | {"caption": _text(sample.caption)}))
    return records, failed


def _batches(items: Sequence[Item], batch: int) -> Iterator[list[int]]:
    """Places of items of one shape, some at a time."""
    for _, group in groupby(range(len(items)), key=lambda place: items[place].key):
        places = list(group)
        yield from (places[n : n + batch] for n in range(0, len(places), batch))


def _text(caption: str) -> np.ndarray:
    return np.frombuffer(caption.encode() or b" ", np.uint8)
