"""The one attention function under every network, and its implementations.

Letters: B batch, L tokens (Lq queries, Lk keys), N heads, D head width.

Four implementations of the same formula, softmax(q k^T / sqrt(D)) v with the softmax in float32:

- "xla": the formula as it stands. Holds all scores, B * N * Lq * Lk * 4 bytes.
- "chunked": the same block by block (running maximum and sum; FlashAttention, arXiv 2205.14135),
  forwards and backwards, in plain JAX. Runs anywhere.
- "pallas": JAX's TPU flash attention kernel.
- "cudnn": cuDNN's fused attention, for half precision on NVIDIA GPUs.

Left to itself `attend` takes "xla" while the scores are small and the platform's blockwise
implementation beyond.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from mv2_jax.config import nearest
from mv2_jax.nn import flash

IMPLEMENTATIONS = ("xla", "chunked", "pallas", "cudnn")

# Scores beyond this many bytes go blockwise.
_SCORE_BYTES = 32 * 2**20


def attend(
    q: Array,
    k: Array,
    v: Array,
    *,
    lengths: Array | None = None,
    causal: bool = False,
    impl: str | None = None,
) -> Array:
    """Multi-head scaled dot-product attention (arXiv 1706.03762), scale D**-0.5.

    Args:
        q: [B, Lq, N, D], any float type; the result has this type.
        k, v: [B, Lk, N, D], of q's type. Lk may differ from Lq.
        lengths: [B] int32, how many leading keys of each row count; a row with 0 yields zeros.
        causal: query i sees keys 0..i only (aligned at the start when Lq != Lk).
        impl: "xla", "chunked", "pallas" or "cudnn"; None chooses by platform and size.

    Returns:
        [B, Lq, N, D].

    Raises:
        ValueError: shapes or types that do not fit together, or an unknown `impl`.
    """
    _check(q, k, v, lengths, impl)
    impl = impl or _choose(q, k)
    if lengths is None:
        return _RUN[impl](q, k, v, None, causal)
    # No implementation has to face a row without keys: it attends to one, and is blanked here.
    out = _RUN[impl](q, k, v, jnp.clip(lengths, 1, k.shape[1]), causal)
    return jnp.where((lengths > 0)[:, None, None, None], out, jnp.zeros((), out.dtype))


def _check(q: Array, k: Array, v: Array, lengths: Array | None, impl: str | None) -> None:
    shapes = f"q {q.shape} {q.dtype}, k {k.shape} {k.dtype}, v {v.shape} {v.dtype}"
    if q.ndim != 4 or k.shape != v.shape or k.ndim != 4:
        raise ValueError(f"attend wants q [B, Lq, N, D] and k, v [B, Lk, N, D]; got {shapes}")
    if q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise ValueError(f"attend: batch, heads and head width of q and k must agree; got {shapes}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attend: q, k and v must be of one type; got {shapes}")
    if lengths is not None and lengths.shape != q.shape[:1]:
        raise ValueError(f"attend: lengths must be [{q.shape[0]}], got {lengths.shape}")
    if impl is not None and impl not in _RUN:
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(
            f"attend: unknown impl {impl!r}{nearest(impl, IMPLEMENTATIONS)}; known: {known}"
        )


def _choose(q: Array, k: Array) -> str:
    scores = 4 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[1]
    return "xla" if scores <= _SCORE_BYTES else "chunked"


def _xla(q: Array, k: Array, v: Array, lengths: Array | None, causal: bool) -> Array:
    # XLA:CPU's batched matrix products are fastest with the two batch dimensions leading.
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    scores = jnp.einsum("bnqd,bnkd->bnqk", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    mask = flash.mask(q.shape[2], k.shape[2], lengths, causal)
    if mask is not None:
        scores = jnp.where(mask, scores, flash.MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bnqk,bnkd->bnqd", weights, v)
    return jnp.swapaxes(out, 1, 2)


_RUN = {"xla": _xla, "chunked": flash.chunked}
