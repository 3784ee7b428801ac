"""Blockwise attention in plain JAX, forwards and backwards (FlashAttention, arXiv 2205.14135).

Rows (batch entries) are mapped over in groups, and within a row queries and keys go block by
block, so that no more than a fixed amount of scores exists at any time. The backward pass works
the scores out again from the saved log-sum-exp instead of storing them.

Letters: B batch, L tokens (Lq queries, Lk keys), N heads, D head width.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

# Stands for minus infinity: finite, so that a fully masked block gives 0 and not NaN.
MASKED = -1e30

# Most queries, and most keys, of one block; bytes of scores that exist at any one time. Those for
# CPU keep a block's scores in the cache.
_BLOCK, _BLOCK_CPU = 512, 256
_GROUP_BYTES, _GROUP_BYTES_CPU = 128 * 2**20, 4 * 2**20


def fold(x: Array) -> Array:
    """[B, L, N, D] -> [B * N, L, D]."""
    b, length, n, d = x.shape
    return jnp.swapaxes(x, 1, 2).reshape(b * n, length, d)


def unfold(x: Array, shape: tuple[int, ...]) -> Array:
    """Inverse of `fold`, for the original `shape`."""
    b, length, n, d = shape
    return jnp.swapaxes(x.reshape(b, n, length, d), 1, 2)


def chunked(
    q: Array,
    k: Array,
    v: Array,
    lengths: Array | None,
    causal: bool,
    platform: str = "cpu",
    block: int | None = None,
) -> Array:
    """Attention by blocks of at most `block` queries and keys; the rest as `attention.attend`."""
    cpu = platform == "cpu"
    masked = lengths is not None
    if not masked:
        lengths = jnp.full(q.shape[:1], k.shape[1], jnp.int32)
    plan = _Plan(
        causal,
        masked,
        block or (_BLOCK_CPU if cpu else _BLOCK),
        _GROUP_BYTES_CPU if cpu else _GROUP_BYTES,
    )
    return _chunked(q, k, v, lengths, plan)


class _Plan(NamedTuple):
    """What is static: masks, block size, and how many bytes of scores may exist at once."""

    causal: bool
    masked: bool
    block: int
    bytes: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunked(q, k, v, lengths, plan):
    return _forward(q, k, v, lengths, plan)[0]


def _chunked_fwd(q, k, v, lengths, plan):
    out, lse = _forward(q, k, v, lengths, plan)
    return out, (q, k, v, lengths, out, lse)


def _chunked_bwd(plan, saved, d_out):
    q, k, v, lengths, out, lse = saved
    row = functools.partial(_row_backward, plan=plan)
    dq, dk, dv = _map_rows(row, q, k, plan)((q, k, v, lengths, out, lse, d_out))
    return dq, dk, dv, None


_chunked.defvjp(_chunked_fwd, _chunked_bwd)


def _forward(q, k, v, lengths, plan):
    row = functools.partial(_row_forward, plan=plan)
    return _map_rows(row, q, k, plan)((q, k, v, lengths))


def _map_rows(row, q, k, plan):
    """`row`, mapped over the batch with as many rows at once as `plan.bytes` allows."""
    block = plan.block
    bytes_of_row = 4 * q.shape[2] * min(q.shape[1], block) * min(k.shape[1], block)
    rows = max(1, plan.bytes // bytes_of_row)
    if rows >= q.shape[0]:
        return jax.vmap(lambda args: row(*args))
    return lambda args: lax.map(lambda x: row(*x), args, batch_size=rows)


def _blocks(length: int, most: int) -> tuple[int, int]:
    """(count, size) of even blocks that cover `length`; sizes a multiple of 8 where several."""
    count = math.ceil(length / most)
    if count == 1:
        return 1, length
    size = 8 * math.ceil(length / count / 8)
    return math.ceil(length / size), size


def _split(x: Array, count: int, size: int) -> Array:
    """[L, N, ...] -> [count, N, size, ...], zero-padded to count * size."""
    pad = [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    x = jnp.pad(x, pad).reshape(count, size, *x.shape[1:])
    return jnp.swapaxes(x, 1, 2)


def _join(x: Array, length: int) -> Array:
    """Inverse of `_split`."""
    x = jnp.swapaxes(x, 1, 2)
    return x.reshape(-1, *x.shape[2:])[:length]


def _scores(q, k, i, j, length, lk, plan):
    """Scaled and masked scores of query block i and key block j: [N, bq, bk] float32."""
    bq, bk = q.shape[1], k.shape[1]
    s = jnp.einsum("nqd,nkd->nqk", q, k, preferred_element_type=jnp.float32)
    s = s * q.shape[-1] ** -0.5
    if plan.causal or plan.masked or lk % bk:
        keys = j * bk + jnp.arange(bk)[None, None, :]
        seen = keys < (length if plan.masked else lk)
        if plan.causal:
            seen = seen & (keys <= i * bq + jnp.arange(bq)[None, :, None])
        s = jnp.where(seen, s, MASKED)
    return s


def _row_forward(q, k, v, length, plan):
    """One row. q [Lq, N, D], k, v [Lk, N, D] -> out [Lq, N, D], log-sum-exp [Lq, N] float32."""
    lq, n, d = q.shape
    lk = k.shape[0]
    (cq, bq), (ck, bk) = _blocks(lq, plan.block), _blocks(lk, plan.block)
    qs, ks, vs = _split(q, cq, bq), _split(k, ck, bk), _split(v, ck, bk)

    def query_block(args):
        i, q_i = args

        def key_block(carry, args):
            top, total, acc = carry
            j, k_j, v_j = args
            s = _scores(q_i, k_j, i, j, length, lk, plan)
            new_top = jnp.maximum(top, s.max(-1))
            p = jnp.exp(s - new_top[..., None])
            decay = jnp.exp(top - new_top)
            total = total * decay + p.sum(-1)
            pv = jnp.einsum(
                "nqk,nkd->nqd", p.astype(v.dtype), v_j, preferred_element_type=jnp.float32
            )
            return (new_top, total, acc * decay[..., None] + pv), None

        start = (
            jnp.full((n, bq), MASKED, jnp.float32),
            jnp.zeros((n, bq), jnp.float32),
            jnp.zeros((n, bq, d), jnp.float32),
        )
        (top, total, acc), _ = lax.scan(key_block, start, (jnp.arange(ck), ks, vs))
        return (acc / total[..., None]).astype(q.dtype), top + jnp.log(total)

    out, lse = lax.map(query_block, (jnp.arange(cq), qs))
    return _join(out, lq), _join(lse, lq)


def _row_backward(q, k, v, length, out, lse, d_out, plan):
    """Gradients of one row: dq [Lq, N, D], dk, dv [Lk, N, D] in their types."""
    lq, n, d = q.shape
    lk = k.shape[0]
    (cq, bq), (ck, bk) = _blocks(lq, plan.block), _blocks(lk, plan.block)
    f32 = jnp.float32
    # The softmax's own gradient needs only this row sum (FlashAttention, eq. 4).
    delta = jnp.sum(out.astype(f32) * d_out.astype(f32), axis=-1)
    qs, dos = _split(q, cq, bq), _split(d_out, cq, bq)
    lses, deltas = _split(lse, cq, bq), _split(delta, cq, bq)
    ks, vs = _split(k, ck, bk), _split(v, ck, bk)

    def key_block(dq_all, args):
        j, k_j, v_j = args

        def query_block(carry, args):
            dk, dv = carry
            i, q_i, do_i, lse_i, delta_i, dq_i = args
            s = _scores(q_i, k_j, i, j, length, lk, plan)
            p = jnp.exp(s - lse_i[..., None])
            dv = dv + jnp.einsum(
                "nqk,nqd->nkd", p.astype(do_i.dtype), do_i, preferred_element_type=f32
            )
            dp = jnp.einsum("nqd,nkd->nqk", do_i, v_j, preferred_element_type=f32)
            ds = (p * (dp - delta_i[..., None]) * d**-0.5).astype(q.dtype)
            dk = dk + jnp.einsum("nqk,nqd->nkd", ds, q_i, preferred_element_type=f32)
            dq_i = dq_i + jnp.einsum("nqk,nkd->nqd", ds, k_j, preferred_element_type=f32)
            return (dk, dv), dq_i

        zeros = jnp.zeros((n, bk, d), f32)
        xs = (jnp.arange(cq), qs, dos, lses, deltas, dq_all)
        (dk, dv), dq_all = lax.scan(query_block, (zeros, zeros), xs)
        return dq_all, (dk.astype(k.dtype), dv.astype(v.dtype))

    dq, (dk, dv) = lax.scan(key_block, jnp.zeros((cq, n, bq, d), f32), (jnp.arange(ck), ks, vs))
    return _join(dq, lq).astype(q.dtype), _join(dk, lk), _join(dv, lk)
