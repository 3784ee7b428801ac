"""Which worlds training never sees: the two fixed rules, and draws on either side of them.

A world's words are (thing, colour, scene, motion). Two sets are withheld from all training, the
autoencoder's included:

- "triples": one (thing, colour, scene) in ten, with all its motions;
- "quads": of the other four-tuples, one in ten.

The rules are sums modulo 10 with weights prime to 10, not a hash: so what is withheld is spread
evenly, and every pair of words stays well represented in training (tested).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.diffusion import keys
from mv2_jax.lookup import one_of
from mv2_jax.toybox.vocabulary import MOTIONS, SIZES
from mv2_jax.toybox.world import World, sample_world

SETS = ("triples", "quads")


def residue(thing, colour, scene):
    """(thing + 3 colour + 7 scene) mod 10, elementwise, for ints, NumPy or JAX arrays."""
    return (thing + 3 * colour + 7 * scene) % 10


def in_triples(thing, colour, scene, motion=0):
    """True where the (thing, colour, scene) is withheld with all its motions."""
    return residue(thing, colour, scene) + 0 * motion == 0


def in_quads(thing, colour, scene, motion):
    """True where the four-tuple is withheld though its triple is not."""
    rest = residue(thing, colour, scene)
    return (rest != 0) & ((rest + 3 * motion) % 10 == 4)


def is_train(thing, colour, scene, motion):
    """True where training may use the four-tuple."""
    words = (thing, colour, scene, motion)
    # Not "~": of Python's own bools that is -2 or -1, both true.
    return (in_triples(*words) | in_quads(*words)) ^ True


def _tuples(keep) -> np.ndarray:
    every = np.array(list(itertools.product(*map(range, SIZES))), np.int32)
    return every[keep(*every.T)]


TRAIN = _tuples(is_train)  # [n, 4] int32, every four-tuple of training
TEST = {"triples": _tuples(in_triples), "quads": _tuples(in_quads)}


def sample_train_world(key: jax.Array, motions: Mapping[str, float] | None = None) -> World:
    """A world of the training split: its four words uniform over `TRAIN`, the rest at random.

    Args:
        motions: how often four-tuples of a motion are drawn, those that are not named once; 2
            draws them twice as often.

    Raises:
        ValueError: as `shares`.
    """
    pick, rest = keys.split(key)
    words = jnp.asarray(TRAIN)
    if motions:
        row = jax.random.choice(pick, len(TRAIN), p=jnp.asarray(shares(motions)))
    else:
        row = jax.random.randint(pick, (), 0, len(TRAIN))
    words = words[row]
    return sample_world(rest, words[0], words[1], words[2], words[3])


def shares(motions: Mapping[str, float]) -> np.ndarray:
    """The probability of each row of `TRAIN` [n], float32; `motions` as above.

    Raises:
        ValueError: a motion that there is none of, a negative number, or nothing left to draw.
    """
    often = np.ones(len(MOTIONS))
    for name, weight in motions.items():
        one_of(name, MOTIONS, "motion")
        if weight < 0:
            raise ValueError(f"motion {name!r} is to be drawn {weight} times as often; not below 0")
        often[MOTIONS.index(name)] = weight
    rows = often[TRAIN[:, 3]]
    if not rows.any():
        raise ValueError("every motion is to be drawn 0 times as often; leave one")
    return (rows / rows.sum()).astype(np.float32)


def test_tuples(which: str, count: int, seed: int = 0) -> np.ndarray:
    """`count` four-tuples [count, 4] int32 of a test set, without repeats while they last.

    Raises:
        ValueError: `which` is neither "triples" nor "quads".
    """
    one_of(which, TEST, "test set")
    rng = np.random.default_rng(seed)
    table = TEST[which]
    rounds = [rng.permutation(table) for _ in range(-(-count // len(table)))]
    return np.concatenate(rounds)[:count]
