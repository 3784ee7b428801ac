"""The implementations of attention that this machine has, beside the formula in fp32.

    python benchmarks/attention.py

Shapes are those of SD1.5's UNet (self-attention, 77 words, an odd plane), with lengths, and causal.
The table gives, relative in norm, the errors of the output and of the gradients by q, k and v. A
row passes where the largest is within 1e-5 in fp32 and 1e-2 in bf16, whose rounding alone makes
4e-3; the exit code is 1 where one does not.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.nn.attention import attend

# (queries, keys, heads, head width, lengths of the two rows, causal)
SHAPES = (
    (256, 256, 8, 40, None, False),
    (1406, 1406, 5, 64, None, False),
    (333, 77, 8, 80, None, False),
    (625, 625, 8, 40, None, False),
    (128, 128, 4, 64, (100, 7), False),
    (200, 200, 4, 64, None, True),
)
BLOCKWISE = {"gpu": (("cudnn", jnp.bfloat16),), "tpu": (("pallas", jnp.float32),)}
BOUNDS = {jnp.float32: 1e-5, jnp.bfloat16: 1e-2}


def results(shape: tuple, impl: str, dtype: Any) -> list[np.ndarray]:
    """The output and the gradients by q, k and v of a random weighing of it."""
    lq, lk, heads, width, lengths, causal = shape
    sizes = [(2, length, heads, width) for length in (lq, lk, lk, lq)]
    q, k, v, weights = map(jax.random.normal, jax.random.split(jax.random.key(0), 4), sizes)
    lengths = None if lengths is None else jnp.asarray(lengths, jnp.int32)

    def weighed(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
        qkv = (x.astype(dtype) for x in qkv)
        out = attend(*qkv, lengths=lengths, causal=causal, impl=impl).astype(jnp.float32)
        return (out * weights).sum(), out

    grads, out = jax.jit(jax.grad(weighed, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x) for x in (out, *grads)]


def main() -> int:
    """Prints the table, and says whether all passed."""
    own = BLOCKWISE.get(jax.default_backend(), ())
    ways = (("chunked", jnp.float32), ("xla", jnp.bfloat16), *own)
    print(f"JAX {jax.__version__}, {jax.devices()[0].device_kind}")
    heads = ("queries x keys", "heads x width", "", "", "", "output", "dq", "dk", "dv")
    row = "{:>14} {:>13} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {}"
    print(row.format(*heads, ""))
    failed = False
    for shape in SHAPES:
        lq, lk, n, d, lengths, causal = shape
        with jax.default_matmul_precision("highest"):
            exact = results(shape, "xla", jnp.float32)
        for impl, dtype in ways:
            with jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default"):
                made = results(shape, impl, dtype)
            errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(made, exact)]
            bad = not max(errors) <= BOUNDS[dtype]
            kind = "causal" if causal else "lengths" if lengths else ""
            said = (f"{error:.1e}" for error in errors)
            name = jnp.dtype(dtype).name
            print(
                row.format(
                    f"{lq} x {lk}", f"{n} x {d}", kind, impl, name, *said, "FAIL" if bad else ""
                )
            )
            failed |= bad
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
