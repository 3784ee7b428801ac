"""From prompts, whatever they say of weights, frames and steps, to token ids."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from mv2_jax import text
from mv2_jax.stages.conditions.text import Changing, Ids
from mv2_jax.text import Tokenizer, emphasis, timing
from mv2_jax.text.emphasis import Marked


def ids(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    negative: str = "",
    frames: int = 1,
    times: Sequence[float] = (0.0,),
) -> tuple[Ids | Changing, Ids | Changing]:
    """Token ids [B, L] of the prompts, and of what to steer away from, one row a prompt.

    `Marked`, both of them, where a part is marked to count more or less, or a prompt is longer than
    a row; `Changing` where one changes over so many frames, or over the steps of these timesteps.
    """
    both = [text.named(tokenizer, each) for each in (*prompts, *[negative] * len(prompts))]
    timed = [timing.timed(each, len(times), frames) for each in both]
    count = max(len(each.texts) for each in timed)
    filled = [each.texts + each.texts[:1] * (count - len(each.texts)) for each in timed]
    rows = emphasis.rows(tokenizer, [each for texts in filled for each in texts])
    tokens, weights, empty = (jnp.asarray(part) for part in rows)
    plain = tokens.shape[1] == 1 and (rows.weights == 1).all()

    def half(of: slice) -> Ids:
        return tokens[of, 0] if plain else Marked(tokens[of], weights[of], empty)

    here = len(prompts) * count
    towards, away = half(slice(here)), half(slice(here, None))
    if count == 1:
        return towards, away
    shares, at = jnp.asarray(timing.padded(timed)), jnp.asarray(times, jnp.float32)
    at = at if shares.shape[1] > 1 else at[:1]
    mine, others = shares[: len(prompts)], shares[len(prompts) :]
    return Changing(towards, mine, at), Changing(away, others, at)
