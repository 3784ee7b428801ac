"""Latents that are made once, kept in shards, and read in every later epoch.

Rendering and encoding a clip costs about as much as a network's step on it, so a phase that comes
back to the same clips saves that from the second epoch on. A shard is made when a step first needs
it: training starts at once, and a cut run keeps the shards it made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mv2_jax import files, params
from mv2_jax.models.vae import ENCODING
from mv2_jax.train import processes

Arrays = dict[str, np.ndarray]


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Sixteen letters that change with anything the latents depend on; `facts` is JSON-ready."""
    return hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()[:16]


def of_encoder(vae: Mapping[str, Any]) -> str:
    """A digest of what in an autoencoder's tree makes latents: its decoder changes none of them."""
    return params.digest({name: vae[name] for name in ENCODING})


def at_once(cpu: int, accelerator: int) -> int:
    """How many samples to make at once: few keep a CPU's cache, many fill an accelerator."""
    return cpu if jax.default_backend() == "cpu" else accelerator


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order [count] of an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count) if epoch else np.arange(count)


def position(seed: int, step: int, batch: int, count: int) -> np.ndarray:
    """Which of `count` samples the batch of a step holds: [batch] int64.

    The first epoch goes through them in order, so shards are made one after the other; each later
    one in an order of its own. Depends on nothing else, so a resumed run reads what it would have.
    """
    places = np.arange(step * batch, (step + 1) * batch)
    epochs, within = places // count, places % count
    found = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        found[chosen] = _order(seed, int(epoch), count)[within[chosen]]
    return found


def on_every_device(
    encode: Callable[[Any, Any], dict[str, jax.Array]],
    weights: Any,
    chunk: int,
    read: Callable[[np.ndarray], Any] = lambda numbers: numbers,
) -> Callable[[np.ndarray], Arrays]:
    """A `Shards.make` that runs `encode` on all of this process's devices, each on its own rows.

    One device alone would make all others wait at the training step's next sum over them.

    Args:
        encode: (weights, what `read` gives) -> arrays whose first axis is n; a row depends on its
            own number alone.
        chunk: numbers that a device is given at once.
        read: sample numbers [n] -> arrays of first axis n, made on the host; by default `encode`
            is given the numbers themselves.
    """
    devices = jax.local_devices()
    mesh, rows = Mesh(np.array(devices), ("rows",)), PartitionSpec("rows")
    # Under shard_map XLA can put in no exchange between devices, which could meet the training
    # step's on another device in another order.
    run = jax.jit(
        jax.shard_map(
            encode, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows, check_vma=False
        )
    )
    weights = jax.device_put(weights, NamedSharding(mesh, PartitionSpec()))

    def make(numbers: np.ndarray) -> Arrays:
        count = len(devices) * min(chunk, -(-len(numbers) // len(devices)))
        # What fills up the last chunk is made again and dropped.
        filled = np.resize(numbers, -(-len(numbers) // count) * count)
        parts = [run(weights, read(part)) for part in filled.reshape(-1, count)]
        return {
            name: np.concatenate([np.asarray(part[name]) for part in parts])[: len(numbers)]
            for name in parts[0]
        }

    return make


class Shards:
    """`count` samples in .npz shards of `size` under `<root>/<fingerprint>/`.

    Args:
        root: where sets of latents lie; each set has a folder of its own.
        facts: what the samples depend on (digest of the encoder, sizes, seed ...).
        make: sample numbers [n] -> arrays whose first axis is n; called for one shard at a time.
        count: how many samples there are; a multiple of `size`.
        size: samples a shard.

    Raises:
        ValueError: `count` is not a multiple of `size`.
    """

    def __init__(
        self,
        root: Path,
        facts: Mapping[str, Any],
        make: Callable[[np.ndarray], Mapping[str, Any]],
        count: int,
        size: int,
    ) -> None:
        if count <= 0 or size <= 0 or count % size:
            raise ValueError(f"{count} samples do not divide into shards of {size}")
        self.folder = root / fingerprint({"facts": dict(facts), "shard": size})
        self.count, self.size = count, size
        self._make = make
        self._held: dict[int, Arrays] = {}

    def shard(self, number: int) -> Arrays:
        """The arrays of a shard: from memory, from disk, or made and (by process 0) written now."""
        if number not in self._held:
            path = self.folder / f"{number:05d}.npz"
            if path.is_file():
                with np.load(path) as stored:
                    self._held[number] = {name: stored[name] for name in stored.files}
            else:
                made = self._make(np.arange(number * self.size, (number + 1) * self.size))
                self._held[number] = {name: np.asarray(x) for name, x in made.items()}
                if processes.first():
                    self.folder.mkdir(parents=True, exist_ok=True)
                    with files.whole(path) as scratch:
                        np.savez(scratch, **self._held[number])
        return self._held[number]

    def take(self, numbers: np.ndarray) -> Arrays:
        """The samples of these numbers, [n, ...] per array."""
        rows = [(self.shard(int(n) // self.size), int(n) % self.size) for n in numbers]
        return {name: np.stack([shard[name][i] for shard, i in rows]) for name in rows[0][0]}
