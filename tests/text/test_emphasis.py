"""Marked prompts: what counts how much, what is escaped, and how long prompts are cut."""

import random

import numpy as np
import pytest

from mv2_jax.text import CLIPTokenizer, WordTokenizer, emphasis

UP, DOWN = 1.1, 1 / 1.1


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", [("", 1)]),
        ("a red ball", [("a red ball", 1)]),
        ("a (red) ball", [("a ", 1), ("red", UP), (" ball", 1)]),
        ("a ((red)) ball", [("a ", 1), ("red", UP**2), (" ball", 1)]),
        ("a [red] ball", [("a ", 1), ("red", DOWN), (" ball", 1)]),
        ("a (red:1.3) ball", [("a ", 1), ("red", 1.3), (" ball", 1)]),
        ("a (red : .5 ) ball", [("a ", 1), ("red ", 0.5), (" ball", 1)]),
        ("(a (red:1.5) ball:2)", [("a ", 2), ("red", 3), (" ball", 2)]),
        ("[a (b) c]", [("a ", DOWN), ("b", UP * DOWN), (" c", DOWN)]),
        ("(red", [("red", UP)]),
        ("a ((red:1.5) ball", [("a ", 1), ("red", 1.5 * UP), (" ball", UP)]),
        ("red) ball]", [("red) ball]", 1)]),
        (r"\(red\) \[ball\] \\ \x", [(r"(red) [ball] \ \x", 1)]),
        (r"(a\)b:1.2)", [("a)b", 1.2)]),
        ("at 10:30, ratio 16:9)", [("at 10:30, ratio 16:9)", 1)]),
        ("(at 10:30 sharp)", [("at 10:30 sharp", UP)]),
        ("(a:-1)(b:+2.)", [("a", -1), ("b", 2)]),
        ("a () b", [("a  b", 1)]),
    ],
)
def test_marks(text, expected):
    found = emphasis.parse(text)
    assert [piece for piece, _ in found] == [piece for piece, _ in expected]
    np.testing.assert_allclose([w for _, w in found], [w for _, w in expected], rtol=1e-12)


def test_nothing_is_lost_whatever_is_written():
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choice("ab (([]):\\1.5") for _ in range(rng.randrange(20)))
        letters = [char for char in emphasis.plain(text) if char in "ab "]
        assert letters == [char for char in text if char in "ab "] or ":" in text, text
    words = "no marks: just words, 10:30 & \\o/ {curly}"
    assert emphasis.parse(words) == [(words, 1.0)]


def test_a_short_unmarked_prompt_is_the_tokenizers_own_row():
    prompts = ["a photo of a cat", "", "x" * 20]
    for tokenizer in (CLIPTokenizer(), WordTokenizer(["a", "cat"], max_length=5)):
        marked = emphasis.rows(tokenizer, prompts)
        assert marked.ids.shape == (3, 1, tokenizer.max_length)
        np.testing.assert_array_equal(marked.ids[:, 0], tokenizer.encode(prompts))
        np.testing.assert_array_equal(marked.empty, tokenizer.encode([""]))
        assert (marked.weights == 1).all()


def test_weights_lie_on_their_tokens_and_on_nothing_else():
    tokenizer = CLIPTokenizer()
    marked = emphasis.rows(tokenizer, ["a (lighthouse:1.4) in a [storm]"])
    plain = tokenizer.encode(["a lighthouse in a storm"])
    np.testing.assert_array_equal(marked.ids[:, 0], plain)
    expected = np.ones(77, np.float32)
    expected[[2, 5]] = 1.4, DOWN
    np.testing.assert_allclose(marked.weights[0, 0], expected, rtol=1e-6)


def test_a_long_prompt_is_cut_into_rows_of_75_and_no_token_is_lost():
    tokenizer = CLIPTokenizer()
    text = "one (two:1.2) three, " * 40
    tokens = tokenizer.tokenize("one two three, " * 40)
    marked = emphasis.rows(tokenizer, [text, "short"])
    assert marked.ids.shape == (2, -(-len(tokens) // 75), 77)
    assert (marked.ids[:, :, 0] == tokenizer.bos_token_id).all()
    inside = marked.ids[0, :, 1:76].reshape(-1)[: len(tokens)]
    np.testing.assert_array_equal(inside, tokens)
    weighed = marked.weights[0, :, 1:76].reshape(-1)[: len(tokens)]
    two = tokenizer.tokenize("two")[0]
    np.testing.assert_allclose(weighed, np.where(inside == two, 1.2, 1.0), rtol=1e-6)
    np.testing.assert_array_equal(marked.ids[1, 1:], np.broadcast_to(marked.empty, (2, 77)))
    assert (marked.weights[1] == 1).all()


def test_a_tokenizer_of_whole_words_stays_in_one_row():
    tokenizer = WordTokenizer(["a", "red", "ball"], max_length=5)
    marked = emphasis.rows(tokenizer, ["a (red:1.3) ball", "a a a a a a"])
    np.testing.assert_array_equal(marked.ids[:, 0], tokenizer.encode(["a red ball", "a a a"]))
    np.testing.assert_allclose(marked.weights[0, 0], [1, 1, 1.3, 1, 1], rtol=1e-6)
