"""An optimiser's state in half precision or in 8 bits.

Moments are decoded before a step and encoded after it, with stochastic rounding: what is too small
for the coarse numbers is then kept on average, where rounding to the nearest would lose it at every
step (a second moment that decays by 0.999 moves by less than a bf16's last bit).

"bf16" cuts the low 16 bits. "int8" (block-wise, as arXiv 2110.02861 has it) stores each number as
a power of its share of the largest in its row along the last axis: |x| / max = (code / top)^p. The
powers are this project's choice: 2 for signed moments (to 1/16129 of the row's largest), 4 for
second moments (to 2e-10), which a step divides by the root of, so that none becomes zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mv2_jax.diffusion import keys

STATES = ("fp32", "bf16", "int8")
LEAST = 256  # numbers; smaller leaves stay as they are


class Coded(NamedTuple):
    """A state whose large leaves are coded; `scales` are their rows' largest, [..., 1] ([0] where
    there is none). Codes have the shapes of parameters and lie on a mesh as these do."""

    count: jax.Array
    codes: Any
    scales: Any


def coded(tx: optax.GradientTransformation, kind: str) -> optax.GradientTransformation:
    """The transformation with its state stored as one of `STATES`."""
    if kind == "fp32":
        return tx

    def init(params: Any) -> Coded:
        return encode(tx.init(params), jnp.zeros((), jnp.int32), kind)

    def update(grads: Any, state: Coded, params: Any = None) -> tuple[Any, Coded]:
        updates, inner = tx.update(grads, decode(state, kind), params)
        return updates, encode(inner, state.count + 1, kind)

    return optax.GradientTransformation(init, update)


def encode(state: Any, count: jax.Array, kind: str) -> Coded:
    """A state in codes; `count` is what the rounding is drawn by."""
    key = keys.fold(keys.seed(0), count)
    pairs = jax.tree_util.tree_map_with_path(lambda path, x: _encode(path, x, key, kind), state)
    codes = jax.tree.map(lambda _, pair: pair[0], state, pairs)
    return Coded(count, codes, jax.tree.map(lambda _, pair: pair[1], state, pairs))


def decode(state: Coded, kind: str) -> Any:
    """The state in fp32."""

    def one(path: tuple, codes: jax.Array, scale: jax.Array) -> jax.Array:
        if codes.dtype == jnp.bfloat16:
            return codes.astype(jnp.float32)
        if codes.dtype not in (jnp.int8, jnp.uint8):
            return codes
        power, top = _form(path)
        share = codes.astype(jnp.float32) / top
        return jnp.sign(share) * jnp.abs(share) ** power * scale

    return jax.tree_util.tree_map_with_path(one, state.codes, state.scales)


def _encode(path: tuple, x: jax.Array, key: jax.Array, kind: str) -> tuple[jax.Array, jax.Array]:
    if x.dtype != jnp.float32 or x.size < LEAST:
        return x, jnp.zeros(0)
    key = keys.fold(key, jax.tree_util.keystr(path))
    if kind == "bf16":
        noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
        kept = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
        return jnp.where(jnp.isfinite(x), kept, x.astype(jnp.bfloat16)), jnp.zeros(0)
    power, top = _form(path)
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    share = jnp.abs(x) / jnp.where(scale > 0, scale, 1.0)
    low = jnp.floor(top * share ** (1 / power))
    # Drawn so that the mean is x itself, not the mean of its root.
    ends = [(n / top) ** power for n in (low, low + 1)]
    up = jax.random.uniform(key, x.shape) * (ends[1] - ends[0]) < share - ends[0]
    code = jnp.minimum(low + up, top)
    if _second(path):
        return jnp.where(x > 0, jnp.maximum(code, 1), 0).astype(jnp.uint8), scale
    return (jnp.sign(x) * code).astype(jnp.int8), scale


def _second(path: tuple) -> bool:
    """Whether a leaf is of second moments, as optax calls them."""
    return any(getattr(part, "name", None) == "nu" for part in path)


def _form(path: tuple) -> tuple[float, float]:
    """(power, the largest code)."""
    return (4.0, 255.0) if _second(path) else (2.0, 127.0)
