"""From prompts' tokens to the states that cross-attention reads: weights, and any length.

A weight w takes a token's state from the empty prompt's state at that place, w times as far as the
token itself is (ComfyUI's and compel's rule). The web UI's own, to scale the states and then bring
their mean back, divides by a mean that may be next to nothing. A prompt's rows are encoded each by
itself and laid end to end, as all of these tools do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mv2_jax.text.emphasis import Marked

Ids = Any
"""Token ids [B, L], or `Marked`."""
Encode = Callable[[jax.Array], tuple[jax.Array, jax.Array | None]]


def states(encode: Encode, ids: Ids) -> tuple[jax.Array, jax.Array | None]:
    """States [B, L, C] (n rows of `Marked`: [B, n * L, C]) and pooled text [B, P] of prompts.

    Args:
        encode: ids [B, L] -> (states [B, L, C], pooled [B, P] or None).
        ids: token ids [B, L], or `Marked`. The pooled text is of its first row, unweighed.
    """
    if not isinstance(ids, Marked):
        return encode(ids)
    batch, count, length = ids.ids.shape
    flat = jnp.concatenate([ids.ids.reshape(batch * count, length), ids.empty])
    text, pooled = encode(flat)
    text, none = text[:-1], text[-1:]
    more = (ids.weights.reshape(batch * count, length, 1) - 1).astype(text.dtype)
    # So written, a weight of 1 leaves the state as it is, bit for bit.
    text = (text + more * (text - none)).reshape(batch, count * length, -1)
    if pooled is not None:
        pooled = pooled[:-1].reshape(batch, count, -1)[:, 0]
    return text, pooled


def first_rows(ids: Ids) -> jax.Array:
    """The first row of tokens [B, L] of every prompt."""
    return ids.ids[:, 0] if isinstance(ids, Marked) else ids


def together(first: Ids, second: Ids) -> Ids:
    """Two batches of prompts as one, the first one's before the second's."""
    if not isinstance(first, Marked):
        return jnp.concatenate([first, second])
    ids, weights = (jnp.concatenate([a, b]) for a, b in zip(first[:2], second[:2]))
    return Marked(ids, weights, first.empty)
