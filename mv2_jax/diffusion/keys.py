"""Randomness: one key per sample, split by named purpose.

A sample owns one key. Every use of chance folds the use's name into it ("noise", "timestep",
"drop_text", ...), so that adding a use never moves another one, and a draw depends on nothing but
its own sample: a sample in a batch equals the sample alone, on any mesh.

No other file of the package makes, splits or folds keys: what `jax.random.key` makes is of the
default generator, and that is another one on many a TPU (`JAX_DEFAULT_PRNG_IMPL=rbg`).

All batch helpers take typed keys `[B]` and vectorise over them. That gives the same numbers as one
key at a time only for counter-based generators whose bits do not depend on the batching, so keys
are made as threefry here, whatever `jax_default_prng_impl` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

IMPL = "threefry2x32"


def seed(number: int) -> jax.Array:
    """The key `[]` of one sample from a user's seed, 0..2^32-1."""
    return seeds([number])[0]


def seeds(numbers: Sequence[int]) -> jax.Array:
    """Keys `[B]`, one per seed; `seeds([a, b])[1]` equals `seed(b)`.

    Raises:
        ValueError: a seed is not in 0..2^32-1.
    """
    for number in numbers:
        if not 0 <= number < 2**32:
            raise ValueError(
                f"seed {number} is out of range; take a whole number in 0..{2**32 - 1}"
            )
    return jax.vmap(lambda n: jax.random.key(n, impl=IMPL))(np.asarray(numbers, dtype=np.uint32))


def word(name: str) -> int:
    """A 32-bit number from a name: the same in every process, version and machine.

    (Python's own `hash` of a string changes from process to process.)
    """
    return int.from_bytes(hashlib.blake2s(name.encode(), digest_size=4).digest(), "big")


def fold(keys: jax.Array, purpose: str | int | jax.Array) -> jax.Array:
    """Keys for one purpose, of the shape of `keys` (`[]` or `[B]`).

    `purpose` is a name, or a number such as a step's index (it may be traced). Names are hashed
    to 32 bits, numbers are used as they are: fold a name first, then the number.
    """
    number = word(purpose) if isinstance(purpose, str) else purpose
    # Python's numbers go through numpy, for JAX takes those above 2^31 for an overflow.
    number = np.uint32(number) if isinstance(number, int) else number.astype(jnp.uint32)
    if keys.ndim == 0:
        return jax.random.fold_in(keys, number)
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def per_sample(key: jax.Array, batch: int) -> jax.Array:
    """Keys `[B]` from one key `[]`, for training, where a step has one key.

    Sample i gets the same key whatever the batch size is.
    """
    return each(key, jnp.arange(batch, dtype=jnp.uint32))


def each(key: jax.Array, numbers: jax.Array | np.ndarray) -> jax.Array:
    """Keys `[B]` of things with these numbers `[B]`, 0..2^32-1, from one key `[]`."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.asarray(numbers, jnp.uint32))


def split(key: jax.Array, count: int = 2) -> jax.Array:
    """Keys `[count]` from one key `[]`, where uses have no names of their own."""
    return jax.random.split(key, count)


def normal(keys: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
    """Standard normal numbers `[B, *shape]`; `shape` is that of one sample."""
    return jax.vmap(lambda key: jax.random.normal(key, tuple(shape), dtype))(keys)


def uniform(keys: jax.Array, shape: Sequence[int] = (), dtype=jnp.float32) -> jax.Array:
    """Uniform numbers in [0, 1), `[B, *shape]`."""
    return jax.vmap(lambda key: jax.random.uniform(key, tuple(shape), dtype))(keys)


def bernoulli(keys: jax.Array, probability: float | jax.Array) -> jax.Array:
    """Booleans `[B]`, each true with `probability` (for dropping a condition in training)."""
    return uniform(keys) < probability
