"""Kinds of words, and words alike: examples that people agree on."""

import pytest

from mv2_jax.text import meaning

THINGS = "dog giraffe pizza castle rocket robot dragon girl piano house tree flower man fish"
COLOURS = "brown gray grey black teal magenta turquoise maroon silver gold beige"
SCENES = "city forest beach mountains lake river rain storm morning park kitchen moon"
MOTIONS = "running runs dancing walks swims jumps leaping rolling explodes melting climbing"
NONE = "beautiful cinematic tall slowly the and very frobnicated"


@pytest.mark.parametrize(
    ("words", "kind"),
    [(THINGS, "thing"), (COLOURS, "colour"), (SCENES, "scene"), (MOTIONS, "motion"), (NONE, None)],
)
def test_kinds(words, kind):
    assert {word: meaning.kind(word) for word in words.split()} == dict.fromkeys(
        words.split(), kind
    )


@pytest.mark.parametrize(
    ("word", "known", "nearest"),
    [
        ("dog", "rocket cat pizza down", "cat"),
        ("bicycle", "fox pizza car", "car"),
        ("cookie", "fox cake car", "cake"),
        ("mountain", "snow night sunset ball", "snow"),
        ("brown", "growing white down", "white"),
    ],
)
def test_what_is_like_what(word, known, nearest):
    assert meaning.like(word, known.split(), 1) == (nearest,)


def test_words_that_the_table_lacks():
    assert meaning.like("frobnicated", ["cat"]) == () == meaning.like("cat", ["frobnicated"])
    assert not meaning.is_english("frobnicated") and meaning.is_english("cat")
    assert meaning.spelled("boll", ["ball", "fall"]) == "ball"
    assert meaning.spelled("xyzzy", ["ball", "fall"]) is None
