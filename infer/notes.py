"""What a user will want to know of a request though nothing is wrong, as lines for warnings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mv2_jax.infer import words
from mv2_jax.infer.request import Request, interpolators_of

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle


def warnings(request: Request, bundle: Bundle, tokenizer: Any = None) -> Iterator[str]:
    """Lines for things that are not wrong, but that the user will want to know.

    `tokenizer` is the bundle's, where it is at hand.
    """
    from mv2_jax import text

    tokenizer = tokenizer or text.from_json(bundle.tokenizer)
    frames = request.choices.get("i2v", {}).get("frames", bundle.stages["i2v"].frames)
    said = dict.fromkeys((*request.prompts, request.negative, *request.negatives.values()))
    for prompt in (text.named(tokenizer, each) for each in said):
        yield from _strange(prompt, tokenizer, frames)
        for each in text.timing.timed(prompt, 100, frames).texts:
            yield from words.warnings(text.emphasis.plain(each), tokenizer)
    for prompt in dict.fromkeys(request.prompts):
        texts = text.timing.timed(prompt, 100, frames).texts
        plain = map(text.emphasis.plain, texts)
        if not tokenizer.in_rows and any(_is_cut(tokenizer, each) for each in plain):
            yield f'these weights read less than the whole of "{prompt}"; its end is ignored'
    if request.before is not None:
        then = request.before
        if then["weights"].get("sha256") != bundle.digest:
            yield "these are not the weights the video was made with; the frames will differ"
        known = [then["from_image"], then["from_video"], *then["looks"], *then["controls"].values()]
        held = {part["file"]: part["sha256"] for part in known if part}
        for source in request.sources:
            if held.get(str(source.path)) != source.sha256:
                yield f"{source.path} has changed since; the frames will differ"
        for path, sha256 in interpolators_of(request).items():
            if then["weights"].get("interpolators", {}).get(path) != sha256:
                yield f"{path} has changed since; the frames will differ"


# What a prompt may ask for in the words of other tools, and where it is to be had instead.
_INSTEAD = {
    "<": "a LoRA is merged by --lora FILE:WEIGHT",
    "AND": "prompts are not composed; it is read as a comma",
    "e": "these weights have no such embedding; mv2 convert --embedding FILE:NAME puts one in",
}


def _strange(prompt: str, tokenizer: Any, frames: int) -> Iterator[str]:
    """Warnings of words in a prompt that are no words."""
    from mv2_jax.text import timing

    for word in timing.strange(prompt):
        yield f'"{word}" has no effect here: {_INSTEAD.get(word, _INSTEAD.get(word[0]))}'
    last = max(timing.travel(prompt))
    if last >= frames:
        yield f"the prompt names frame {last}; the keyframes are 0 to {frames - 1}"
    if "BREAK" in prompt and not tokenizer.in_rows:
        yield "BREAK has no effect: these weights read prompts as one row"


def _is_cut(tokenizer: Any, prompt: str) -> bool:
    """Whether the tokenizer drops the end of a prompt: the row is full without its last word."""
    rows = tokenizer.encode([prompt, re.sub(r"\w+\W*$", "", prompt)])
    full = np.argmax(rows[0] == tokenizer.eos_token_id) == rows.shape[1] - 1
    return bool(full and np.array_equal(*rows))
