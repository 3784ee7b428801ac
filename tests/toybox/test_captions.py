import itertools

import pytest

from mv2_jax.text import WordTokenizer
from mv2_jax.toybox import captions
from mv2_jax.toybox.vocabulary import COLOURS, MOTIONS, SCENES, SIZES, THINGS


def test_every_caption_says_its_four_words_within_the_vocabulary():
    known = set(captions.VOCABULARY)
    for seed, words in enumerate(itertools.product(*map(range, SIZES))):
        for text in (captions.caption(seed, *words), captions.canonical(*words)):
            assert captions.indices(captions.parse(text)) == words, text
            said = captions._WORD.findall(text)
            assert known.issuperset(said), text
            assert len(said) <= 18


def test_captions_vary_and_repeat_by_seed():
    texts = [captions.caption(seed, 0, 0, 2, 4) for seed in range(400)]
    assert len(set(texts)) > 200
    assert texts == [captions.caption(seed, 0, 0, 2, 4) for seed in range(400)]
    starts = {text.split()[0] for text in texts}
    assert {"a", "the", "one", "over", "in", "bouncing"} <= starts


def test_every_word_of_the_vocabulary_is_used():
    used = set()
    for seed in range(3):
        for i, words in enumerate(itertools.product(*map(range, SIZES))):
            used.update(captions._WORD.findall(captions.caption(7919 * i + seed, *words)))
    assert used == set(captions.VOCABULARY)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a red ball bouncing over a meadow", ("ball", "red", "meadow", "bouncing")),
        ("A crimson sphere that bounces in the snow.", ("ball", "red", "snow", "bouncing")),
        ("at night, one azure hoop goes up", ("ring", "blue", "night sky", "rising")),
        ("white star bouncing up and down by the sea", ("star", "white", "sea", "bouncing")),
    ],
)
def test_prompts_are_read(text, words):
    assert tuple(captions.parse(text).values()) == words


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red ball",
        "a red blue ball bouncing over a meadow",
        "a ball bouncing over a meadow",
        "a red ball growing and shrinking in the snow",
    ],
)
def test_what_does_not_name_four_words_is_not_read(text):
    assert captions.parse(text) is None


def test_articles():
    assert captions.canonical(
        THINGS.index("cube"), COLOURS.index("orange"), SCENES.index("sea"), MOTIONS.index("rising")
    ).startswith("an orange cube")
    texts = [captions.caption(seed, 0, 1, 0, 0) for seed in range(200)]
    assert not any(" a orange" in f" {text}" for text in texts)


def test_the_vocabulary_suits_the_word_tokenizer():
    tokenizer = WordTokenizer(captions.VOCABULARY)
    assert not tokenizer.unknown("a red ball bouncing over a meadow")
