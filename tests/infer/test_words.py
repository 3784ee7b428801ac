"""`mv2 words`, and what is told of words that the weights do not know."""

import json

import pytest

from mv2_jax import cli
from mv2_jax.errors import InputError
from mv2_jax.infer import words
from mv2_jax.text import CLIPTokenizer, WordTokenizer
from mv2_jax.toybox import captions

TOYBOX = WordTokenizer(captions.VOCABULARY)
THINGS = "ball, cube, star, heart, ring, pyramid"


def told(prompt, tokenizer=TOYBOX):
    return list(words.warnings(prompt, tokenizer))


def test_words_are_answered_by_meaning():
    (line,) = told("a brown dog and a cat over the mountains")
    assert f'the things "dog", "cat" (known: {THINGS})' in line
    assert 'the colour "brown" (known: red, orange, yellow,' in line
    assert 'the scene "mountains" (known: night sky, ' in line
    assert "down" not in line and "growing" not in line.split("motion")[0]
    assert told("a red ball bouncing over a meadow") == []
    assert told("a cinematic ball") == [
        'these weights do not know "cinematic"; mv2 words lists what they know'
    ]


@pytest.mark.parametrize(
    ("typed", "meant"), [("baall", "ball"), ("balls", "ball"), ("bounced", "bounces"),
                         ("crimsonn", "crimson"), ("boxes", "box")]
)  # fmt: skip
def test_slips_and_other_forms(typed, meant):
    assert f'"{typed}" (did you mean "{meant}"?)' in told(f"a red {typed}")[0]


def test_another_word_that_is_spelt_alike_is_not_meant():
    (line,) = told("a red ball flying")
    assert "did you mean" not in line and 'the motion "flying" (known: moving left' in line


def test_two_of_a_kind_where_the_world_has_one():
    assert told("a ball and a cube in the snow") == [
        '"a ball and a cube in the snow" names 2 things (ball, cube); these weights show one'
    ]
    assert told("a ball bouncing up and down") == []


def test_a_vocabulary_of_ones_own():
    many = WordTokenizer("fox wolf cat horse lion tiger rabbit whale dolphin frog eagle owl car "
                         "snow running a".split())  # fmt: skip
    (line,) = told("a dog", many)
    assert '"dog" (nearest: cat, ' in line
    known = words.vocabulary(many)
    assert set(known.kinds) == {"thing", "scene", "motion"} and known.other == ("a",)
    assert set(known.words) == set(many.words)


@pytest.mark.parametrize("prompt", ["\N{DOG FACE}!!", "собака", "...", "0: 犬, 8: 猫", "(dog:1.2)"])
def test_a_prompt_of_nothing_known_is_refused(prompt):
    with pytest.raises(InputError, match=f"know no word of .*: {THINGS}; colours: red"):
        words.check([prompt], TOYBOX)
    words.check([prompt], CLIPTokenizer())
    words.check([prompt + ", 9: a ball" if ":" in prompt else "a " + prompt, ""], TOYBOX)


def test_the_commands(tiny_weights, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = ["--weights", str(tiny_weights)]
    assert cli.main(["words", *weights]) == 0
    assert capsys.readouterr().out.startswith("things: ball, cube\ncolours: red\n")
    assert cli.main(["words"]) == 0
    assert capsys.readouterr().out.startswith("things: ball (sphere), cube (box), star, heart")
    assert cli.main(["words", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["colour"]["red"] == ["red", "crimson", "scarlet"]
    calls = {word for kind in captions.NAMES for names in listed[kind].values() for word in names}
    assert set(" ".join(calls).split()) | {*listed["other"]} == set(captions.VOCABULARY)
    assert cli.main(["generate", "\N{DOG FACE}", "-o", "a.mp4", *weights]) == 2
    assert "know no word of the prompt" in capsys.readouterr().err
    assert cli.main(["explain", "собака", *weights]) == 2
    assert not list(tmp_path.iterdir())
