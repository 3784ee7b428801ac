"""The tokenizer that a phase reads captions with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mv2_jax import text
from mv2_jax.config import TextConfig
from mv2_jax.errors import InputError
from mv2_jax.train.source import Source
from mv2_jax.train.task import Component


def tokenizer(begin: Mapping[str, Component], source: Source, cfg: TextConfig) -> text.Tokenizer:
    """That of the text encoder in `begin`, as its cascade folder or phase says; where there is
    none, or it does not say, the source's own vocabulary, in rows as long as the text encoder's.

    Raises:
        InputError: there is neither, or its ids are more, or its rows of another length, than the
            text encoder takes.
    """
    held = begin.get("text_encoder")
    if held is not None and held.tokenizer is not None:
        words = text.from_json(held.tokenizer)
    else:
        words = source.tokenizer(cfg.max_length)
    if words.max_length != cfg.max_length:
        raise InputError(
            f"the tokenizer makes rows of {words.max_length} tokens, and the text encoder takes "
            f"{cfg.max_length}"
        )
    return words


def fit(cfg: TextConfig, words: text.Tokenizer) -> TextConfig:
    """A fresh text encoder's config with the tokenizer's vocabulary and end token."""
    return dataclasses.replace(cfg, vocab_size=words.vocab_size, eos_token_id=words.eos_token_id)


def check(cfg: TextConfig, words: text.Tokenizer) -> None:
    """Refuses a tokenizer whose ids a trained text encoder does not know.

    Raises:
        InputError: it has more, or another end token.
    """
    if words.vocab_size > cfg.vocab_size:
        raise InputError(
            f"the captions' tokenizer knows {words.vocab_size} tokens, and the text encoder that "
            f"training begins from {cfg.vocab_size}: begin from the folder it belongs to"
        )
