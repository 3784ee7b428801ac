"""Watching cross-attention from outside: what each query looked at, of a network left as it is.

Flax's method interceptors hear the projections as they are called; nothing in the networks knows of
it, and a program that is not watched is the same program as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mv2_jax.nn.attention import Attention

KEYS = {"to_k": "text", "to_k_ip": "image"}


def cross_attention(
    function: Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[Any, dict[str, dict[str, jax.Array]]]:
    """Calls `function(*args, **kwargs)` and says where its cross-attentions looked.

    Call it within the `jit` that the function is part of. Of networks called one after the other,
    a later one's layers replace an earlier one's of the same names (a UNet's its ControlNet's).

    Returns:
        (the function's result, {"text" or "image": {layer: weights}}): weights [B, Lq, Lk] fp32
        sum to 1 over the tokens Lk and are means over the heads; layers as "mid_block/.../attn2".
    """
    heads: dict[tuple[str, ...], int] = {}
    heard: dict[tuple[str, ...], jax.Array] = {}

    def listen(call: Any, call_args: Any, call_kwargs: Any, context: Any) -> Any:
        out = call(*call_args, **call_kwargs)
        path = tuple(context.module.path)
        if context.method_name == "__call__":
            # Self-attention is told no context.
            if isinstance(context.module, Attention) and len(call_args) > 1:
                heads[path] = context.module.heads
            elif path and path[-1] in ("to_q", *KEYS):
                heard[path] = out
        return out

    with nn.intercept_methods(listen):
        result = function(*args, **kwargs)
    maps: dict[str, dict[str, jax.Array]] = {kind: {} for kind in KEYS.values()}
    for path, count in heads.items():
        for name, kind in KEYS.items():
            if (*path, name) in heard:
                query, key = heard[(*path, "to_q")], heard[(*path, name)]
                maps[kind]["/".join(path)] = _weights(query, key, count)
    return result, maps


def _weights(query: jax.Array, key: jax.Array, heads: int) -> jax.Array:
    """Softmax weights [B, Lq, Lk] of projected queries [B, Lq, C] and keys, means over heads."""
    query, key = (x.reshape(*x.shape[:2], heads, -1).astype(jnp.float32) for x in (query, key))
    scores = jnp.einsum("bqnd,bknd->bnqk", query, key) * query.shape[-1] ** -0.5
    return jax.nn.softmax(scores, axis=-1).mean(axis=1)


def on_plane(weights: jax.Array, frames: int, plane: tuple[int, ...]) -> jax.Array:
    """Weights [B, T * h * w, L] as maps [B, T, h, w, L].

    Args:
        plane: (H, W) of the outermost level; h and w are it halved, rounded up, some times.

    Raises:
        ValueError: the queries are those of no level.
    """
    count, (height, width) = weights.shape[1] // frames, plane
    while height * width > count and max(height, width) > 1:
        height, width = -(-height // 2), -(-width // 2)
    if frames * height * width != weights.shape[1]:
        raise ValueError(
            f"{weights.shape[1]} queries are no level of {frames} planes of {plane[0]}x{plane[1]}"
        )
    return weights.reshape(weights.shape[0], frames, height, width, -1)
