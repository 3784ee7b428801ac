"""What a denoising network outputs, and the way from it to clean samples and back.

Everything here is variance preserving: x = alpha * x0 + sigma * eps with alpha^2 + sigma^2 = 1.

- "eps" predicts the noise (DDPM, arXiv 2006.11239),
- "x0" the clean sample,
- "v" = alpha * eps - sigma * x0 (progressive distillation, arXiv 2202.00512, appendix D).

`alpha` and `sigma` are numbers, or `[B]` with one per sample. At zero signal (alpha = 0) an eps
output says nothing about x0, and at zero noise nothing says what eps is: both come out as 0, the
mean of what is not known, rather than as infinity.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mv2_jax.config import nearest

KINDS = ("eps", "v", "x0")


def check(kind: str) -> None:
    """Raises ValueError where `kind` is no prediction type, and names the nearest."""
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise ValueError(f"unknown prediction {kind!r} (known: {known}){nearest(kind, KINDS)}")


def expand(value: float | jax.Array, ndim: int) -> jax.Array:
    """A number as it is; `[B, ...]` with ones behind it, so that it multiplies a rank-`ndim` x."""
    value = jnp.asarray(value)
    return value if value.ndim == 0 else value.reshape(value.shape + (1,) * (ndim - value.ndim))


def divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and 0 where b is 0 (also in the gradient)."""
    none = b == 0
    return jnp.where(none, 0.0, a / jnp.where(none, 1.0, b))


def noised(x0: jax.Array, eps: jax.Array, alpha, sigma) -> jax.Array:
    """x = alpha * x0 + sigma * eps."""
    return expand(alpha, x0.ndim) * x0 + expand(sigma, x0.ndim) * eps


def target(kind: str, x0: jax.Array, eps: jax.Array, alpha, sigma) -> jax.Array:
    """What a network of this kind should have output, given the clean sample and the noise."""
    check(kind)
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    return expand(alpha, x0.ndim) * eps - expand(sigma, x0.ndim) * x0


def to_x0(kind: str, output: jax.Array, x: jax.Array, alpha, sigma) -> jax.Array:
    """The clean sample that a network's output implies at the noisy sample `x`."""
    check(kind)
    alpha, sigma = expand(alpha, x.ndim), expand(sigma, x.ndim)
    if kind == "eps":
        return divide(x - sigma * output, alpha)
    if kind == "x0":
        return output
    return alpha * x - sigma * output


def to_eps(kind: str, output: jax.Array, x: jax.Array, alpha, sigma) -> jax.Array:
    """The noise that a network's output implies at the noisy sample `x`."""
    check(kind)
    if kind == "eps":
        return output
    if kind == "x0":
        return eps_of(x, output, alpha, sigma)
    return expand(alpha, x.ndim) * output + expand(sigma, x.ndim) * x


def eps_of(x: jax.Array, x0: jax.Array, alpha, sigma) -> jax.Array:
    """The noise in `x` where `x0` is the clean sample."""
    return divide(x - expand(alpha, x.ndim) * x0, expand(sigma, x.ndim))


def from_x0(kind: str, x0: jax.Array, x: jax.Array, alpha, sigma) -> jax.Array:
    """The output of this kind that stands for `x0` at the noisy sample `x`; undoes `to_x0`."""
    check(kind)
    if kind == "x0":
        return x0
    if kind == "eps":
        return eps_of(x, x0, alpha, sigma)
    # alpha * eps - sigma * x0 with eps = (x - alpha * x0) / sigma and alpha^2 + sigma^2 = 1.
    return divide(expand(alpha, x.ndim) * x - x0, expand(sigma, x.ndim))
