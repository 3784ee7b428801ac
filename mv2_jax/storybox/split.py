"""Which worlds training never sees: the two fixed rules, and draws on either side of them.

- "acts": one (thing, scene, motion) in ten, with all else;
- "pairs": of the other worlds of two things, one (thing, second, relation) in ten.

The rules are sums modulo 10 with weights prime to 10, as the toybox's.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.diffusion import keys
from mv2_jax.lookup import one_of
from mv2_jax.storybox.vocabulary import ASIDES, HOURS, KINDS, NOTHING, RELATIONS, STYLES, WEATHERS
from mv2_jax.storybox.world import World, sample_world

SETS = ("acts", "pairs")
ALONE = 0.5  # share of worlds that hold one thing


def in_acts(words):
    """True where the (thing, scene, motion) of words [..., WORDS] is withheld."""
    return (words[..., 0] + 3 * words[..., 2] + 7 * words[..., 5]) % 10 == 0


def in_pairs(words):
    """True where both things and their relation are withheld though the act is not."""
    withheld = (words[..., 0] + 3 * words[..., 6] + 7 * words[..., 7]) % 10 == 4
    return withheld & (words[..., 6] != NOTHING) & (in_acts(words) ^ True)


def is_train(words):
    """True where training may use the words [..., WORDS]."""
    return (in_acts(words) | in_pairs(words)) ^ True


def _acts(keep) -> np.ndarray:
    """Rows (thing, scene, motion)."""
    sizes = [len(KINDS[kind]) for kind in ("thing", "scene", "motion")]
    every = np.array(list(itertools.product(*map(range, sizes))), np.int32)
    whole = np.zeros((len(every), len(KINDS)), np.int32)
    whole[:, [0, 2, 5]] = every
    return every[keep(whole)]


TRAIN_ACTS = _acts(lambda words: ~in_acts(words))
TEST_ACTS = _acts(in_acts)


def sample_train_world(key: jax.Array) -> World:
    """A world of the training split: thing, scene and motion uniform over what is not withheld, one
    thing in half of all worlds, the rest at random."""
    pick, rest = keys.split(key)
    chance = jax.random.uniform(pick, (8,))
    rows = jnp.asarray(TRAIN_ACTS)
    row = rows[(chance[0] * len(TRAIN_ACTS)).astype(jnp.int32)]

    def of(i, names):
        return (chance[i] * len(names)).astype(jnp.int32)

    # Another thing: so many places further round the list, one more or fewer where that is
    # withheld (which changes the sum by 3).
    relation, further = of(5, RELATIONS), 1 + (chance[6] * (NOTHING - 1)).astype(jnp.int32)
    second = (row[0] + further) % NOTHING
    withheld = (row[0] + 3 * second + 7 * relation) % 10 == 4
    further = jnp.where(withheld, jnp.where(further == 1, 2, further - 1), further)
    second = jnp.where(chance[7] < ALONE, NOTHING, (row[0] + further) % NOTHING)
    words = jnp.stack(
        [row[0], of(1, STYLES), row[1], of(2, HOURS), of(3, WEATHERS), row[2], second, relation,
         of(4, ASIDES)]
    )  # fmt: skip
    return sample_world(rest, words)


def test_words(which: str, count: int, seed: int = 0) -> np.ndarray:
    """`count` rows of words [count, WORDS] int32 of a test set.

    Raises:
        ValueError: `which` is neither "acts" nor "pairs".
    """
    one_of(which, SETS, "test set")
    rng = np.random.default_rng([seed, SETS.index(which)])
    found = []
    while len(found) < count:
        words = np.array([rng.integers(len(names)) for names in KINDS.values()], np.int32)
        if which == "acts":
            words[[0, 2, 5]] = TEST_ACTS[rng.integers(len(TEST_ACTS))]
            if rng.random() < ALONE:
                words[6:] = NOTHING, 0, 0
        alike = words[6] == words[0] or (words[6] == NOTHING and words[7:].any())
        if not alike and (in_acts if which == "acts" else in_pairs)(words):
            found.append(words)
    return np.stack(found)
