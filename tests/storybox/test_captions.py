import numpy as np
import pytest

from mv2_jax.storybox import captions, split
from mv2_jax.storybox.vocabulary import KINDS
from mv2_jax.text import WordTokenizer

WORDS = np.concatenate([split.test_words(which, 150) for which in split.SETS])


def test_every_caption_says_its_words_within_the_vocabulary():
    known = set(captions.VOCABULARY)
    for seed, words in enumerate(WORDS):
        for text in (captions.caption(seed, words), captions.canonical(words)):
            assert captions.parse(text) == tuple(words), text
            said = captions._WORD.findall(text)
            assert known.issuperset(said), text
            assert len(said) <= captions.LONGEST


def test_captions_vary_and_repeat_by_seed():
    texts = [captions.caption(seed, WORDS[0]) for seed in range(300)]
    assert len(set(texts)) > 290
    assert texts == [captions.caption(seed, WORDS[0]) for seed in range(300)]
    assert any("." in text for text in texts)  # of several sentences
    assert len({text.split()[0] for text in texts}) > 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a fox hopping over the snow at night, a rocket rising behind it",
            {"thing": "fox", "scene": "snow", "hour": "night", "motion": "hopping",
             "second": "rocket", "relation": "behind", "aside": "rising"},
        ),
        (
            "In the rain a flat flying saucer drops down in town",
            {"thing": "flying saucer", "style": "flat", "weather": "rain", "motion": "falling"},
        ),
        (
            "Two words: hot dogs soar by on the beach. To the left of it, a teddy bear waits.",
            {"thing": "hot dog", "second": "teddy", "relation": "left of", "aside": "still"},
        ),
        (
            "a camera standing still while the camera zooms in in the forest",
            {"thing": "camera", "motion": "zooming", "scene": "forest", "second": "nothing"},
        ),
    ],
)  # fmt: skip
def test_prompts_are_read(text, said):
    text = text.replace("soar by", "soars by")
    words = captions.parse(text)
    assert words is not None, captions.classes(text)
    named = {kind: known[word] for (kind, known), word in zip(KINDS.items(), words)}
    assert said.items() <= named.items()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a fox",
        "a fox hopping",
        "hopping over the snow",
        "a fox hopping and swimming in the snow",
        "a fox and a rocket hopping in the snow",
        "a fox, a rocket behind it, a cat behind it, hopping in the snow",
    ],
)
def test_what_names_no_world_is_not_read(text):
    assert captions.parse(text) is None


def test_the_vocabulary_suits_the_word_tokenizer():
    tokenizer = WordTokenizer(captions.VOCABULARY, max_length=captions.LONGEST + 2)
    text = captions.canonical(WORDS[-1])
    assert not tokenizer.unknown(text)
    assert len(tokenizer.encode([text])[0]) == captions.LONGEST + 2
