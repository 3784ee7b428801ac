"""`mv2 words`: what the weights know, and what people are told of words that they do not.

Weights that this project trained read a small vocabulary (`text.WordTokenizer`); public ones read
any text, and there is nothing to tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mv2_jax import bundle as bundles
from mv2_jax import text
from mv2_jax.arguments import Parser
from mv2_jax.errors import InputError
from mv2_jax.text import WordTokenizer, meaning

LISTED = 12  # so many known words of a kind are all named; of more, the nearest


@dataclass(frozen=True)
class Vocabulary:
    """What a word tokenizer knows.

    kinds: {kind: {name: how prompts may call it}}, kinds as `meaning.KINDS`.
    other: its other words.
    single: whether a picture shows one of each kind, as the toybox's do.
    """

    kinds: dict[str, dict[str, tuple[str, ...]]]
    other: tuple[str, ...]
    single: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """Every word."""
        calls = (call for names in self.kinds.values() for call in sum(names.values(), ()))
        return (*dict.fromkeys(" ".join(calls).split()), *self.other)


def vocabulary(tokenizer: Any) -> Vocabulary | None:
    """What the tokenizer knows; None where it reads any text."""
    if not isinstance(tokenizer, WordTokenizer):
        return None
    from mv2_jax.toybox import captions

    toybox = set(captions.VOCABULARY) <= {*tokenizer.words}
    kinds: dict[str, dict[str, tuple[str, ...]]] = {}
    if toybox:
        kinds = {kind: dict(names) for kind, names in captions.NAMES.items()}
    taken = {*Vocabulary(kinds, ()).words}
    other = []
    for word in tokenizer.words:
        kind = meaning.kind(word)
        if word in taken:
            continue
        if toybox or kind is None:
            other.append(word)
        else:
            kinds.setdefault(kind, {})[word] = (word,)
    ordered = {kind: kinds[kind] for kind in meaning.KINDS if kind in kinds}
    return Vocabulary(ordered, tuple(other), single=toybox)


def check(prompts: Sequence[str], tokenizer: Any) -> None:
    """Refuses a prompt of which no word is known.

    Args:
        prompts: as they were typed, weights and times of words included.

    Raises:
        InputError: with what the weights do know.
    """
    for prompt in prompts if isinstance(tokenizer, WordTokenizer) else ():
        if prompt.strip() and not tokenizer.knows_any(prompt):
            known = vocabulary(tokenizer)
            kinds = known.kinds if known else {}
            listed = "; ".join(f"{kind}s: {_few(names)}" for kind, names in kinds.items())
            raise InputError(
                f"these weights know no word of the prompt {_short(prompt)!r}; "
                f"they know {listed or _few(tokenizer.words)} (mv2 words lists all)"
            )


def _few(words: Any, count: int = LISTED) -> str:
    words = list(words)
    return ", ".join(words[:count]) + (", ..." if len(words) > count else "")


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= 60 else prompt[:57] + "..."


def warnings(plain: str, tokenizer: Any) -> Iterator[str]:
    """Lines on a prompt's words that are unknown, and on kinds of which it names two.

    Args:
        plain: the prompt, without weights and times of words.
    """
    from mv2_jax.toybox import captions

    known = vocabulary(tokenizer)
    if known is None:
        return
    strangers = tokenizer.unknown(plain)
    if strangers:
        told = ", ".join(_told(strangers, known))
        yield f"these weights do not know {told}; mv2 words lists what they know"
    for kind, names in captions.classes(plain).items() if known.single else ():
        if len(names) > 1:
            yield (
                f'"{_short(plain)}" names {len(names)} {kind}s ({", ".join(names)}); these weights '
                "show one"
            )


def _told(strangers: Sequence[str], known: Vocabulary) -> Iterator[str]:
    """Unknown words, those of a kind together, with what is known in their place."""
    kinds: dict[str, list[str]] = {}
    for word in strangers:
        kind, near = meaning.kind(word), _spelled(word, known)
        if near:
            yield f'"{word}" (did you mean "{near}"?)'
        elif kind in known.kinds:
            kinds.setdefault(kind, []).append(word)
        else:
            yield f'"{word}"'
    for kind, words in kinds.items():
        names = list(known.kinds[kind])
        instead = f"known: {', '.join(names)}"
        if len(names) > LISTED:
            near_each = [meaning.like(word, names) for word in words]
            instead = f"nearest: {', '.join(dict.fromkeys(sum(near_each, ())))}"
        quoted = ", ".join(f'"{word}"' for word in words)
        yield f"the {kind}{'s' if len(words) > 1 else ''} {quoted} ({instead})"


def _spelled(word: str, known: Vocabulary) -> str | None:
    """The known word that this one is a slip of the keyboard or another form of, or None."""
    if not meaning.is_english(word):
        return meaning.spelled(word, known.words)
    for each in known.words:
        same = next((i for i, (a, b) in enumerate(zip(word, each)) if a != b), None)
        same = min(len(word), len(each)) if same is None else same
        # "balls" is a form of "ball", "bounced" of "bounces"; "flying" is none of "falling".
        if same >= max(3, len(each) - 1, len(word) - 3) and meaning.kind(each) in (
            None,
            meaning.kind(word),
        ):
            return each
    return None


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 words`; returns the exit code. Raises InputError."""
    parser = Parser(
        prog="mv2 words",
        description="What the weights know: the words that prompts may use, by kind, with other "
        "words for the same in brackets.",
    )
    parser.add_argument("--weights", metavar="DIR", help="a cascade folder (the shipped one)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(list(arguments))
    bundle = bundles.read(args.weights)
    known = vocabulary(text.from_json(bundle.tokenizer))
    if args.json:
        print(json.dumps(known and {**known.kinds, "other": known.other}))
        return 0
    if known is None:
        print(f"{bundle.name}: its text encoders read any text; there is no list of words")
        return 0
    for kind, names in known.kinds.items():
        print(f"{kind}s: {', '.join(_named(name, calls) for name, calls in names.items())}")
    if known.other:
        print(f"and: {' '.join(known.other)}")
    return 0


def _named(name: str, calls: Sequence[str]) -> str:
    others = [call for call in calls if call != name]
    return f"{name} ({', '.join(others)})" if others else name
