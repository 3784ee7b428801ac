import json

import numpy as np
import pytest

from mv2_jax.text import WordTokenizer, from_json
from mv2_jax.text.words import END, PAD, START, UNKNOWN

WORDS = ["a", "red", "ball", "bouncing", "over", "meadow", "o'clock"]


def test_ids_follow_the_vocabulary_between_start_and_end():
    rows = WordTokenizer(WORDS, max_length=7).encode(["A red, RED ball!", ""])
    assert rows.dtype == np.int32
    expected = [[START, 4, 5, 5, 6, END, PAD], [START, END, PAD, PAD, PAD, PAD, PAD]]
    np.testing.assert_array_equal(rows, expected)


def test_long_prompts_keep_their_end_token():
    rows = WordTokenizer(WORDS, max_length=5).encode(["a red ball bouncing over a meadow"])
    np.testing.assert_array_equal(rows, [[START, 4, 5, 6, END]])


def test_punctuation_separates_and_apostrophes_do_not():
    tokenizer = WordTokenizer(WORDS, max_length=6)
    texts = ["red-ball; o'clock", "red ball o\u2019clock"]
    one, two = tokenizer.encode(texts)
    np.testing.assert_array_equal(one, two)
    assert one[3] == 4 + WORDS.index("o'clock")


def test_unknown_words_are_named_once():
    tokenizer = WordTokenizer(WORDS, max_length=8)
    assert tokenizer.unknown("a rad boll bounces over a rad meadow") == ["rad", "boll", "bounces"]
    assert (tokenizer.encode(["rad ball"])[0, 1:3] == [UNKNOWN, 6]).all()
    assert tokenizer.unknown("a red ball") == []
    assert tokenizer.knows_any("rad ball") and not tokenizer.knows_any("rad! \N{DOG FACE}")


def test_ids_fit_the_text_encoders_vocabulary():
    tokenizer = WordTokenizer(WORDS, max_length=20)
    assert tokenizer.encode([" ".join(WORDS)]).max() == tokenizer.vocab_size - 1
    assert tokenizer.eos_token_id == END != 2  # 2 would mean CLIP's old pooling rule


def test_json_round_trip():
    tokenizer = WordTokenizer(WORDS, max_length=9)
    again = from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert (again.words, again.max_length) == (tokenizer.words, tokenizer.max_length)


@pytest.mark.parametrize(
    ("words", "length", "message"),
    [
        ([], 9, "at least one"),
        (["a", "b", "a"], 9, "'a' occurs twice"),
        (["two words"], 9, "not one lower-case word"),
        (["Red"], 9, "not one lower-case word"),
        (["a"], 2, "no room"),
    ],
)
def test_bad_vocabularies(words, length, message):
    with pytest.raises(ValueError, match=message):
        WordTokenizer(words, max_length=length)
