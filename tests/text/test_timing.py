"""Prompts that change over steps and frames, by the web UI's rules and AnimateDiff's users'."""

import numpy as np
import pytest

from mv2_jax.text import CLIPTokenizer, WordTokenizer, emphasis, timing

# (prompt, steps, [(last step, text)]): what the comments and doctests of the web UI's own parser
# say (AUTOMATIC1111/stable-diffusion-webui, modules/prompt_parser.py).
WEB_UI = [
    ("test", 10, [(10, "test")]),
    ("a [b:3]", 10, [(3, "a "), (10, "a b")]),
    ("a [b: 3]", 10, [(3, "a "), (10, "a b")]),
    ("a [[[b]]:2]", 10, [(2, "a "), (10, "a [[b]]")]),
    ("[(a:2):3]", 10, [(3, ""), (10, "(a:2)")]),
    ("a [b : c : 1] d", 10, [(1, "a b  d"), (10, "a  c  d")]),
    ("a[b:[c:d:2]:1]e", 10, [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("a [unbalanced", 10, [(10, "a [unbalanced")]),
    ("a [b:.5] c", 10, [(5, "a  c"), (10, "a b c")]),
    ("a [{b|d{:.5] c", 10, [(5, "a  c"), (10, "a {b|d{ c")]),
    ("((a][:b:c [d:3]", 10, [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
    ("[a|(b:1.1)]", 4, [(1, "a"), (2, "(b:1.1)"), (3, "a"), (4, "(b:1.1)")]),
    (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
        "[ in foreground::0.6][ in background:0.25] [shoddy:masterful:0.5]",
        100,
        [
            (25, "fantasy landscape with a mountain and an oak in foreground shoddy"),
            (50, "fantasy landscape with a lake and an oak in foreground in background shoddy"),
            (60, "fantasy landscape with a lake and an oak in foreground in background masterful"),
            (75, "fantasy landscape with a lake and an oak in background masterful"),
            (100, "fantasy landscape with a lake and a christmas tree in background masterful"),
        ],
    ),
]


@pytest.mark.parametrize("prompt, steps, expected", WEB_UI)
def test_a_prompt_changes_with_the_steps_as_in_the_web_ui(prompt, steps, expected):
    """Its sampler asks at step i, from 0, for the first text whose last step is not before i."""
    at = [next(text for end, text in expected if step <= end) for step in range(steps)]
    assert timing.by_step(prompt, steps) == at


@pytest.mark.parametrize(
    "text", ["[a]", "a [b] (c:1.2)", "10:30", r"\[a:b:0.5\]", "[a:b]", "[]", ""]
)
def test_what_does_not_change_is_left_alone(text):
    assert timing.by_step(text, 7) == [text] * 7
    assert timing.timed(text, 7, 5).texts == (text,)


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("0: a red ball, round, 16: a ball", {0: "a red ball, round", 16: "a ball"}),
        ('"0": "a cat", "12" : "a dog"', {0: "a cat", 12: "a dog"}),
        ("8: b; 0: a", {0: "a", 8: "b"}),
        ("0: (a, 3: x:1.2) b, 4: c", {0: "(a, 3: x:1.2) b", 4: "c"}),
        (
            "masterpiece\n0: closed\n8: open, happy\nsmile\n",
            {0: "masterpiece, closed, smile", 8: "masterpiece, open, happy, smile"},
        ),
        ("a clock at 12:30, 5: x", {0: "a clock at 12:30, 5: x"}),
        ("2001: a space odyssey", {0: "2001: a space odyssey"}),
        ("a red ball", {0: "a red ball"}),
    ],
)
def test_named_frames(prompt, expected):
    assert timing.travel(prompt) == expected


def test_frames_between_are_mixed_in_straight_lines():
    made = timing.timed("2: a, 6: b, 10: c", 3, 12)
    assert made.texts == ("a", "b", "c") and made.shares.shape == (1, 12, 3)
    for frame in range(12):
        expected = [np.interp(frame, (2, 6, 10), row) for row in np.eye(3)]
        np.testing.assert_allclose(made.shares[0, frame], expected)
    assert timing.timed("0: a, 6: b", 3, 1).texts == ("a",)  # a picture is the first frame


def test_frames_and_steps_together():
    made = timing.timed("0: x [a:b:0.5], 2: y", 4, 3)
    assert made.texts == ("x a", "x b", "y")
    expected = [[[1, 0, 0], [0.5, 0, 0.5], [0, 0, 1]]] * 3
    expected.append([[0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]])
    np.testing.assert_allclose(made.shares, expected)
    both = timing.padded([made, timing.timed("z", 4, 3)])
    assert both.shape == (2, 4, 3, 3)
    np.testing.assert_array_equal(both[1], np.broadcast_to([1, 0, 0], (4, 3, 3)))


def test_what_is_not_done_here_is_named_and_taken_out():
    prompt = "<lora:foo bar:0.8> a AND b (embedding:bad-v2:1.2) SAND"
    assert timing.strange(prompt) == ["<lora:foo bar:0.8>", "AND", "embedding:bad-v2:1.2"]
    assert timing.timed(prompt).texts == ("a , b () SAND",)


def test_break_begins_a_row():
    tokenizer = CLIPTokenizer()
    found = emphasis.rows(tokenizer, ["a cat BREAK (a dog:1.2) BREAKS", "x BREAK BREAK y", "z"])
    assert found.ids.shape == (3, 3, 77)
    rows = tokenizer.encode(["a cat", "a dog BREAKS", "", "x", "", "y", "z", "", ""])
    np.testing.assert_array_equal(found.ids.reshape(9, 77), rows)
    np.testing.assert_allclose(found.weights[0, 1, :4], [1, 1.2, 1.2, 1])
    words = WordTokenizer(["a", "cat", "dog"], max_length=9)
    np.testing.assert_array_equal(
        emphasis.rows(words, ["a cat BREAK a dog"]).ids[0], words.encode(["a cat a dog"])
    )
    assert emphasis.plain("a cat BREAK a dog") == "a cat a dog"
