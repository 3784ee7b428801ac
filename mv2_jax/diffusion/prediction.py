"""What a denoising network outputs, and the way from it to clean samples and back.

The noisy sample is x = alpha * x0 + sigma * eps.

- "eps" predicts the noise (DDPM, arXiv 2006.11239),
- "x0" the clean sample,
- "v" = alpha * eps - sigma * x0 (progressive distillation, arXiv 2202.00512, appendix D), which
  means something where alpha^2 + sigma^2 = 1 alone,
- "velocity" = eps - x0 (flow matching, arXiv 2209.03003): d x / d sigma where alpha = 1 - sigma.

`alpha` and `sigma` are numbers, or `[B]` with one per sample. At zero signal (alpha = 0) an eps
output says nothing about x0, and at zero noise nothing says what eps is: both come out as 0, the
mean of what is not known, rather than as infinity.

A kind is a name (of these or `module:name`), or a `Prediction` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mv2_jax import lookup
from mv2_jax.diffusion.names import PREDICTIONS


class Prediction(NamedTuple):
    """What a network outputs, as the two functions that say so.

    target: `(x0, eps, alpha, sigma) -> output`, what the network should have output.
    to_x0: `(output, x, alpha, sigma) -> x0`, the clean sample that an output implies at x; affine
        in the output.
    All are arrays of one shape `[B, ...]`; alpha and sigma multiply them as they are.
    """

    target: Callable[..., jax.Array]
    to_x0: Callable[..., jax.Array]


Kind = str | Prediction


def get(kind: Kind) -> Prediction:
    """The prediction of this name, or the one given.

    Raises:
        InputError: no such prediction; the message names the nearest.
    """
    if isinstance(kind, Prediction):
        return kind
    return lookup.find(kind, PREDICTIONS, "prediction", fits=Prediction, wants="a Prediction")


def expand(value: float | jax.Array, ndim: int) -> jax.Array:
    """A number as it is; `[B, ...]` with ones behind it, so that it multiplies a rank-`ndim` x."""
    value = jnp.asarray(value)
    return value if value.ndim == 0 else value.reshape(value.shape + (1,) * (ndim - value.ndim))


def divide(a: float | jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and 0 where b is 0 (also in the gradient)."""
    none = b == 0
    return jnp.where(none, 0.0, a / jnp.where(none, 1.0, b))


EPS = Prediction(
    lambda x0, eps, alpha, sigma: eps,
    lambda output, x, alpha, sigma: divide(x - sigma * output, alpha),
)
X0 = Prediction(
    lambda x0, eps, alpha, sigma: x0,
    lambda output, x, alpha, sigma: output,
)
V = Prediction(
    lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
    lambda output, x, alpha, sigma: alpha * x - sigma * output,
)
VELOCITY = Prediction(
    lambda x0, eps, alpha, sigma: eps - x0,
    lambda output, x, alpha, sigma: (x - sigma * output) / (alpha + sigma),
)


def noised(x0: jax.Array, eps: jax.Array, alpha, sigma) -> jax.Array:
    """x = alpha * x0 + sigma * eps."""
    return expand(alpha, x0.ndim) * x0 + expand(sigma, x0.ndim) * eps


def target(kind: Kind, x0: jax.Array, eps: jax.Array, alpha, sigma) -> jax.Array:
    """What a network of this kind should have output, given the clean sample and the noise."""
    return get(kind).target(x0, eps, expand(alpha, x0.ndim), expand(sigma, x0.ndim))


def to_x0(kind: Kind, output: jax.Array, x: jax.Array, alpha, sigma) -> jax.Array:
    """The clean sample that a network's output implies at the noisy sample `x`."""
    return get(kind).to_x0(output, x, expand(alpha, x.ndim), expand(sigma, x.ndim))


def eps_of(x: jax.Array, x0: jax.Array, alpha, sigma) -> jax.Array:
    """The noise in `x` where `x0` is the clean sample."""
    return divide(x - expand(alpha, x.ndim) * x0, expand(sigma, x.ndim))


def from_x0(kind: Kind, x0: jax.Array, x: jax.Array, alpha, sigma) -> jax.Array:
    """The output of this kind that stands for `x0` at the noisy sample `x`; undoes `to_x0`."""
    return target(kind, x0, eps_of(x, x0, alpha, sigma), alpha, sigma)
