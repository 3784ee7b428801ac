"""XLA's partitioner still gets a sum wrong: why networks run per device (`mv2_jax.shards`).

Two convolutions, the second's kernel split over fsdp by its input channels, then an operation on
positions that are split over another axis as well. XLA splits the first one's plane over halves of
that other axis, and sums the second one's two parts over all devices: each part is counted as often
as it has copies. It needs both axes larger than 1, rows split over fsdp, a stride of 2 and channels
enough; whether B * T divides by the mesh plays no part. XLA's compiler for TPU (libtpu 0.0.42)
makes the same sum over all devices. openxla/xla#40034 is a relative.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

B, T, H, C, D = 2, 5, 8, 32, 64


def conv(x, kernel, stride):
    numbers = ("NHWC", "HWIO", "NHWC")
    pads = [(1, 1), (1, 1)]
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, pads, dimension_numbers=numbers)


def through(split):
    """Two convolutions and a mix over time; `split(y, axes)` says how y lies."""

    def run(x, first, second, w):
        x = split(conv(split(conv(x, first, 2), None), second, 1), None)
        h, c = x.shape[1], x.shape[3]
        y = x.reshape(B, T, h * h, c).transpose(0, 2, 1, 3).reshape(B * h * h, T, c) @ w
        y = split(y, ("fsdp", "context"))
        y = split(jnp.tanh(y.sum(1, keepdims=True) + y), ("fsdp", "context"))
        return x + (y @ w).reshape(B, h * h, T, c).transpose(0, 2, 1, 3).reshape(x.shape)

    return run


def off(rows):
    """The error on a mesh; `rows`: whether the convolutions' results are told to lie over fsdp."""
    mesh = jax.make_mesh((2, 4), ("fsdp", "context"), axis_types=(AxisType.Auto,) * 2)
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape, np.float32) / max(1, np.prod(shape[:-1])) ** 0.5

    x = rng.standard_normal((B * T, H, H, C), np.float32)
    args = x, draw(3, 3, C, C), draw(3, 3, C, D), draw(D, D)
    specs = P("fsdp"), P(), P(None, None, "fsdp"), P()
    want = jax.jit(through(lambda y, _: y))(*args)

    def split(y, axes):
        if axes is None and not rows:
            return y
        return jax.lax.with_sharding_constraint(y, P(axes or "fsdp"))

    with jax.set_mesh(mesh):
        placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(args, specs)]
        got = jax.jit(through(split))(*placed)
    return float(np.abs(got - want).max() / np.abs(want).max())


def test_xla_is_not_mended_yet():
    assert off(rows=True) < 1e-5
    error = off(rows=False)
    assert error > 0.1, (
        f"XLA's partitioner gets this sum right now (relative error {error:.1e}): say so in "
        "mv2_jax/shards.py and docs, and drop this test"
    )
