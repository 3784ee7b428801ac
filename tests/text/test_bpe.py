"""CLIP's tokenizer against transformers' own, from the same vocabulary file."""

import json
import random
import unicodedata

import numpy as np
import pytest

from mv2_jax.text import CLIPTokenizer, bpe, from_json

transformers = pytest.importorskip("transformers")

PROMPTS = [
    "",
    "a photo of a cat",
    "  A  Photo,\tof the CAT's tail... it's 1234 (very) pretty!!",
    "we'll they've I'm you're he'd 'twas",
    "na\u00efve cafe\u0301 stra\u00dfe \u0130stanbul \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03a3",
    "\u732b\u304c\u8d70\u308b \U0001f431\u200d\U0001f680 \u00bd x\u00b2 \u0663",
    "a <|endoftext|> b <|startoftext|>c <|ENDOFTEXT|>!d",
    "antidisestablishmentarianism " * 3,
    "one word and another, " * 40,
]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """transformers' tokenizer, read from the vocab.json and merges.txt that it wants."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps(bpe.vocabulary()), encoding="utf-8")
    pairs = ["#version: 0.2", *(" ".join(pair) for pair in bpe.merges())]
    (folder / "merges.txt").write_text("\n".join(pairs), encoding="utf-8")
    return transformers.CLIPTokenizer.from_pretrained(folder)


def row_ids(tokenizer, texts, length=77):
    options = {"padding": "max_length", "truncation": True, "max_length": length}
    return np.array(tokenizer(texts, **options)["input_ids"])


@pytest.mark.parametrize("length", [77, 8])
def test_rows_equal_transformers(theirs, length):
    ours = CLIPTokenizer(max_length=length).encode(PROMPTS)
    assert ours.dtype == np.int32 and ours.shape == (len(PROMPTS), length)
    np.testing.assert_array_equal(ours, row_ids(theirs, PROMPTS, length))


def test_random_unicode_equals_transformers(theirs):
    rng = random.Random(0)
    ranges = [(0x20, 0x7F)] * 5 + [(0, 0x20), (0x80, 0x250), (0x300, 0x500), (0x1E00, 0x2070)]
    ranges += [(0x600, 0x980), (0x3040, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1F6FF)]

    def letter():
        # What Unicode has not assigned yet is a letter to one library and none to another.
        char = chr(rng.randrange(*rng.choice(ranges)))
        return char if unicodedata.category(char) != "Cn" else " "

    texts = ["".join(letter() for _ in range(rng.randrange(40))) for _ in range(1500)]
    tokenizer = CLIPTokenizer()
    for text, expected in zip(texts, theirs(texts, add_special_tokens=False)["input_ids"]):
        assert tokenizer.tokenize(text) == expected, repr(text)


def test_known_ids():
    # Published with CLIP's own examples: they hold whatever both implementations think.
    rows = CLIPTokenizer().encode(["a photo of a cat"])
    assert rows[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    assert len(bpe.vocabulary()) == CLIPTokenizer.vocab_size == 49408


def test_padding_with_zeros_is_the_end_tokens_only_difference():
    prompts = [prompt for prompt in PROMPTS if "<|" not in prompt]
    eos, zero = (CLIPTokenizer(padding=name).encode(prompts) for name in ("eos", "zero"))
    for a, b in zip(eos, zero):
        end = int(np.argmax(a == CLIPTokenizer.eos_token_id)) + 1
        np.testing.assert_array_equal(a[:end], b[:end])
        assert (a[end:] == CLIPTokenizer.eos_token_id).all() and (b[end:] == 0).all()


def test_every_word_is_known():
    assert CLIPTokenizer().unknown("a frobnicated zxqw") == []


def test_json_round_trip():
    tokenizer = CLIPTokenizer(max_length=12, padding="zero")
    again = from_json(json.loads(json.dumps(tokenizer.to_json())))
    np.testing.assert_array_equal(again.encode(PROMPTS), tokenizer.encode(PROMPTS))


def test_errors_name_what_is_known():
    with pytest.raises(ValueError, match="did you mean 'zero'"):
        CLIPTokenizer(padding="zeros")
    with pytest.raises(ValueError, match="did you mean 'CLIPTokenizer'"):
        from_json({"class": "ClipTokenizer"})
    with pytest.raises(ValueError, match="no room"):
        CLIPTokenizer(max_length=1)
