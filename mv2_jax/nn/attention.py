"""The one attention function under every network, and the layer around it.

Letters: B batch, L tokens (Lq queries, Lk keys), N heads, D head width.

Four implementations of one formula, softmax(q k^T / sqrt(D)) v with the softmax in fp32:

- "xla": the formula as it stands. Holds all scores, B * N * Lq * Lk * 4 bytes.
- "chunked": block by block in plain JAX, forwards and backwards (`nn.flash`). Runs anywhere.
- "pallas": JAX's TPU flash attention kernel.
- "cudnn": cuDNN's fused attention, for half precision on NVIDIA GPUs.

Left to itself `attend` takes "xla" while the scores are small, and beyond that the platform's
blockwise implementation. The platform is that of the mesh set by `jax.set_mesh`, which may be of
absent devices, and else the default backend.

It works on one device's arrays: under a mesh, on the share of rows, tokens and heads that
`mv2_jax.shards` gave it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from mv2_jax import exchanges, sharding, shards
from mv2_jax.lookup import one_of
from mv2_jax.nn import flash, kernels
from mv2_jax.nn.layers import Dtype, dense

IMPLEMENTATIONS = ("xla", "chunked", "pallas", "cudnn")

# Beyond these many bytes of scores on a device, attention goes blockwise. On CPU the plain form
# is faster up to about 4 MiB and slower from 16 MiB on, as its scores leave the cache.
_SCORE_BYTES = {"cpu": 16 * 2**20}
_SCORE_BYTES_ELSEWHERE = 64 * 2**20
# Fewer tokens than this would mostly be padding in a TPU or GPU kernel's blocks.
_KERNEL_TOKENS = 64


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
        ValueError: shapes or types that do not fit together, an unknown `impl`, or one that
            cannot do this (cuDNN with fp32, say).
    """
    shards.check()
    _check(q, k, v, lengths, impl)
    if lengths is None:
        return _run(q, k, v, None, causal, impl)
    # No implementation has to face a row without keys: it attends to one, and is blanked here.
    out = _run(q, k, v, jnp.clip(lengths, 1, k.shape[1]), causal, impl)
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
    if impl is not None:
        one_of(impl, IMPLEMENTATIONS, "impl", "attend")


def _run(q, k, v, lengths, causal, impl):
    platform = sharding.platform()
    return _RUN[impl or choose(q, k, platform)](q, k, v, lengths, causal, platform)


def choose(q: Array, k: Array, platform: str) -> str:
    """The implementation for q [B, Lq, N, D] and k [B, Lk, N, D] of one device of `platform`."""
    b, lq, n, _ = q.shape
    lk = k.shape[1]
    if 4 * b * n * lq * lk <= _SCORE_BYTES.get(platform, _SCORE_BYTES_ELSEWHERE):
        return "xla"
    if min(lq, lk) < _KERNEL_TOKENS:
        return "chunked"
    if platform == "tpu":
        return "pallas"
    return "cudnn" if platform == "gpu" and kernels.cudnn_can(q) else "chunked"


def _xla(q, k, v, lengths, causal, platform):
    # One leading batch dimension: XLA:CPU's fastest form of many small matrix products.
    shape = q.shape
    lq, lk = q.shape[1], k.shape[1]
    q, k, v = (flash.fold(x) for x in (q, k, v))
    scores = jnp.einsum("bqd,bkd->bqk", q, k, preferred_element_type=jnp.float32)
    scores = scores * shape[-1] ** -0.5
    if causal or lengths is not None:
        keys = jnp.arange(lk)[None, None]
        seen = keys <= jnp.arange(lq)[None, :, None] if causal else True
        if lengths is not None:
            seen = seen & (keys < jnp.repeat(lengths, shape[2])[:, None, None])
        scores = jnp.where(seen, scores, flash.MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return flash.unfold(jnp.einsum("bqk,bkd->bqd", weights, v), shape)


_RUN = {
    "xla": _xla,
    "chunked": flash.chunked,
    "pallas": kernels.pallas,
    "cudnn": kernels.cudnn,
}


class Attention(nn.Module):
    """Multi-head attention of x [B, L, C] over itself or over `context` [B, Lc, Cc].

    With `image_context` [B, Li, Cc] it is IP-Adapter's decoupled cross-attention (arXiv
    2308.06721): text attention + image_scale * image attention, sharing the query. The image
    projections are parameters of the `image_attn` tree. `image_scale` is a scalar, [B], or [B, T]
    where x holds the tokens of T frames one after the other.

    `length`: a plane has so many tokens, of which x holds this device's (`shards.Layout.tokens`).
    `key_scale` [B, L] or [B, 1] multiplies keys.
    """

    heads: int
    dtype: Dtype = jnp.float32
    qkv_bias: bool = False
    image_tokens: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Array | None = None,
        image_context: Array | None = None,
        image_scale: Array | float = 1.0,
        length: int | None = None,
        key_scale: Array | None = None,
    ) -> Array:
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f"width {width} does not divide into {self.heads} heads")
        source = x if context is None else context.astype(x.dtype)

        parts = shards.parts(self.heads)

        def project(name: str, y: Array) -> Array:
            y = dense(width // parts, name=name, dtype=self.dtype, bias=self.qkv_bias)(y)
            return y.reshape(*y.shape[:-1], self.heads // parts, width // self.heads)

        query, key, value = project("to_q", x), project("to_k", source), project("to_v", source)
        if key_scale is not None:
            key = key * key_scale[:, :, None, None].astype(key.dtype)
        if length is None:
            out = attend(query, key, value)
        else:
            out = _over_tokens(query, key, value, length)
        if self.image_tokens:
            if image_context is None:
                raise ValueError(
                    "this network has image cross-attention: give image_context [B, L, C] "
                    "(zeros, with image_scale 0, switch it off)"
                )
            image = image_context.astype(x.dtype)
            extra = attend(query, project("to_k_ip", image), project("to_v_ip", image))
            scale = jnp.asarray(image_scale, out.dtype)
            if scale.ndim == 2:
                scale = jnp.repeat(scale, out.shape[1] // scale.shape[1], axis=1)
            out = out + scale.reshape(scale.shape + (1,) * (out.ndim - scale.ndim)) * extra
        out = out.reshape(*out.shape[:-2], width // parts)
        return dense(width, name="to_out_0", dtype=self.dtype, summed=parts > 1)(out)


def _over_tokens(query: Array, key: Array, value: Array, length: int) -> Array:
    """Attention [B, l, N, D] among a plane's `length` tokens, l of which are on this device."""
    tokens = shards.layout().tokens
    if exchanges.takes_heads(query.shape[2], shards.count(tokens)):
        return exchanges.to_tokens(
            attend(*(exchanges.to_heads(y, length) for y in (query, key, value)))
        )
    key, value = (shards.join(y, tokens, 1, length) for y in (key, value))
    return attend(query, key, value)
