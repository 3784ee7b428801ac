"""Fused attention kernels that others wrote: JAX's Pallas kernel for TPU, and cuDNN's.

Letters: B batch, L tokens (Lq queries, Lk keys), N heads, D head width. Arguments are as in
`attention.attend`.
"""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core

_LANES = 128  # the TPU kernel's tiles
_BLOCK = 512


def pallas(
    q: Array, k: Array, v: Array, lengths: Array | None, causal: bool, platform: str
) -> Array:
    """JAX's TPU flash attention, forwards and backwards, with padding to its tiles.

    Tokens are padded to a multiple of the block and masked by segment; head widths above 128 are
    padded to a multiple of it (zeros add nothing to a product), smaller ones are taken as they are.
    """
    from jax.experimental.pallas.ops.tpu import flash_attention as tpu

    b, lq, _, d = q.shape
    lk = k.shape[1]
    block_q, block_k = _block(lq), _block(lk)
    width = d if d <= _LANES else _up(d, _LANES)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    q = _pad(q, _up(lq, block_q), width)
    k, v = (_pad(x, _up(lk, block_k), width) for x in (k, v))
    segments = None
    if lengths is not None or k.shape[2] != lk:
        valid = jnp.full((b,), lk, jnp.int32) if lengths is None else lengths
        keys = jnp.arange(k.shape[2], dtype=jnp.int32)[None]
        segments = tpu.SegmentIds(
            q=jnp.ones((b, q.shape[2]), jnp.int32),
            kv=(keys < valid[:, None]).astype(jnp.int32),
        )
    sizes = tpu.BlockSizes(
        block_q=block_q,
        block_k_major=block_k,
        block_k=block_k,
        block_b=1,
        block_q_major_dkv=block_q,
        block_k_major_dkv=block_k,
        block_k_dkv=block_k,
        block_q_dkv=block_q,
        block_k_major_dq=block_k,
        block_k_dq=block_k,
        block_q_dq=block_q,
    )
    out = tpu.flash_attention(
        q, k, v, segment_ids=segments, causal=causal, sm_scale=d**-0.5, block_sizes=sizes
    )
    return jnp.swapaxes(out[:, :, :lq, :d], 1, 2)


def cudnn_can(q: Array) -> bool:
    """Whether cuDNN's fused attention takes q [B, L, N, D]: half precision, D a multiple of 8.

    It wants NVIDIA's Ampere or later; D may reach 256 on Hopper, 128 on the others. The machine at
    hand decides, and an absent one (`mv2 plan`) is taken for Ampere.
    """
    if q.dtype not in (jnp.float16, jnp.bfloat16) or q.shape[-1] % 8:
        return False
    capability = _capability()
    return capability >= 8.0 and q.shape[-1] <= (256 if int(capability) == 9 else 128)


def cudnn(
    q: Array, k: Array, v: Array, lengths: Array | None, causal: bool, platform: str
) -> Array:
    """cuDNN's fused attention, forwards and backwards, with padding to even numbers of tokens.

    JAX refuses gradients at odd ones (77 words, planes of 75 x 75).

    Raises:
        ValueError: a type or head width that it does not take.
    """
    if not cudnn_can(q):
        raise ValueError(
            "cuDNN's attention takes fp16 and bf16 and head widths that are multiples of 8, up to "
            f"128 (256 on Hopper), on Ampere or later; got {q.dtype} and {q.shape[-1]}; use "
            "impl='chunked'"
        )
    lq, lk = q.shape[1], k.shape[1]
    if _absent():
        return _stand_in(q, k, v)
    if lk % 2 and lengths is None:
        lengths = jnp.full(k.shape[:1], lk, jnp.int32)
    q = jnp.pad(q, ((0, 0), (0, lq % 2), (0, 0), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (0, lk % 2), (0, 0), (0, 0))) for x in (k, v))
    out = jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return out[:, :lq]


def _absent() -> bool:
    """Whether this is a trace for GPUs that are not here, on a machine without cuDNN."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    planned = device is not None and device.platform in ("gpu", "cuda")
    if not planned or jax.default_backend() == "gpu":
        return False
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    return all(importlib.util.find_spec(name) is None for name in plugins)


# The kernel's name and shapes, which `mv2 plan` reads from a trace; they cannot be compiled.
_FORWARDS = core.Primitive("dot_product_attention_fwd")
_BACKWARDS = core.Primitive("dot_product_attention_bwd")
_BACKWARDS.multiple_results = True
_FORWARDS.def_abstract_eval(lambda q, k, v: jax.core.ShapedArray(q.shape, q.dtype))
_BACKWARDS.def_abstract_eval(
    lambda q, k, v, *_: [jax.core.ShapedArray(x.shape, x.dtype) for x in (q, k, v)]
)


@jax.custom_vjp
def _stand_in(q: Array, k: Array, v: Array) -> Array:
    return _FORWARDS.bind(q, k, v)


def _stand_in_fwd(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    out = _FORWARDS.bind(q, k, v)
    return out, (q, k, v, out)


_stand_in.defvjp(_stand_in_fwd, lambda saved, d_out: tuple(_BACKWARDS.bind(*saved, d_out)))


def _capability() -> float:
    """The compute capability of the machine's GPU; 8 where there is none, 0 of another maker's."""
    device = jax.devices()[0]
    if device.platform not in ("gpu", "cuda", "rocm"):
        return 8.0
    try:
        return float(device.compute_capability)
    except (AttributeError, ValueError):  # "gfx90a" is AMD's
        return 0.0


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _block(length: int) -> int:
    """Tokens of one block: as few even blocks as `_BLOCK` allows, in multiples of the tile."""
    count = -(-length // _BLOCK)
    return _up(-(-length // count), _LANES)


def _pad(x: Array, length: int, width: int) -> Array:
    """[B, N, L, D] -> [B, N, length, width], with zeros."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, width - x.shape[3])))
