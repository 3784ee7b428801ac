"""Guidance: several evaluations of a network, under more or fewer conditions, made into one.

The network is asked once a step, with all evaluations stacked along the batch. They are stacked in
the order of growing condition:

- 1 way:  (all,)
- 2 ways: (none, all), classifier-free guidance (arXiv 2207.12598);
- 3 ways: (none, image only, image and text), with a scale for each condition
  (InstructPix2Pix, arXiv 2211.09800, eq. 3).

How many ways there are is structure (it is the size of the batch); every number is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mv2_jax.diffusion.prediction import divide, expand
from mv2_jax.diffusion.samplers import Point


class Guidance(NamedTuple):
    """How strongly to guide; a tree of float32 arrays, `[]` or (but for the interval) `[B]`.

    Make it with `make`, so that every call has the same types and compiles once.

    text: scale of the text (of all conditions together in 2 ways); 1 guides nothing.
    image: scale of the image, in 3 ways only.
    rescale: phi of arXiv 2305.08891, sec. 3.4: how far the guided output's spread is brought
        back to that of the conditioned one; 0 not, 1 wholly.
    low, high: guide only where low <= sigma / alpha <= high (arXiv 2404.07724); elsewhere the
        output is the conditioned one. A `high` of 0 sets no bound.
    """

    text: jax.Array
    image: jax.Array
    rescale: jax.Array
    low: jax.Array
    high: jax.Array


def make(
    text: float | jax.Array = 7.5,
    image: float | jax.Array = 1.0,
    rescale: float | jax.Array = 0.0,
    low: float | jax.Array = 0.0,
    high: float | jax.Array = 0.0,
) -> Guidance:
    """A `Guidance` of float32 arrays; all sigmas by default."""
    return Guidance(*(jnp.asarray(v, jnp.float32) for v in (text, image, rescale, low, high)))


def of(numbers: Mapping[str, float]) -> Guidance:
    """A `Guidance` from a stage's numbers by the names that a cascade has for them.

    "guidance", and where they are there "image_guidance", "guidance_rescale", "guidance_low" and
    "guidance_high".
    """
    return make(
        numbers["guidance"],
        numbers.get("image_guidance", 1.0),
        numbers.get("guidance_rescale", 0.0),
        numbers.get("guidance_low", 0.0),
        numbers.get("guidance_high", 0.0),
    )


def stack(*conditions: Any) -> Any:
    """Trees of equal structure with leading axis B, stacked to one with leading axis ways * B.

    Once per chain, outside of the loop. Order: see the module.
    """
    if not 1 <= len(conditions) <= 3:
        raise ValueError(f"guidance takes 1, 2 or 3 conditions, not {len(conditions)}")
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=0), *conditions)


def fewest(condition: Any, ways: int, text: float, image: float = 1.0) -> Any:
    """The part of a stacked condition that these scales need, so that the network is asked less.

    Scales of 1 need the evaluation under all conditions alone (1 way), and equal scales of text and
    image need no evaluation between (2 of 3 ways): the sums of `combine` are the same. For numbers
    that are known before the program is chosen; `rescale` and the interval change nothing here.

    Args:
        condition: from `stack`, of `ways` conditions.
        text, image: the scales that `make` is to be given.
    """
    if float(text) == 1.0 and (ways < 3 or float(image) == 1.0):
        kept = (ways - 1,)
    elif ways == 3 and float(text) == float(image):
        kept = (0, 2)
    else:
        return condition

    def pick(leaf: jax.Array) -> jax.Array:
        parts = jnp.split(leaf, ways)
        return jnp.concatenate([parts[k] for k in kept])

    return jax.tree.map(pick, condition)


def combine(outputs: jax.Array, guidance: Guidance, ways: int, k: jax.Array) -> jax.Array:
    """One output `[B, ...]` from the stacked `outputs` `[ways * B, ...]` at noise k = sigma/alpha.

    Linear in the outputs with weights that sum to 1, so that it is the same whether they are eps,
    v or x0 (but for the rescale, which is of the outputs as they are, as in diffusers).

    Raises:
        ValueError: `ways` is not 1, 2 or 3, or does not divide the batch.
    """
    if ways not in (1, 2, 3) or outputs.shape[0] % ways:
        raise ValueError(
            f"{outputs.shape[0]} outputs are no stack of 1, 2 or 3 ways ({ways} asked)"
        )
    outputs = outputs.astype(jnp.float32)
    if ways == 1:
        return outputs
    parts = jnp.split(outputs, ways)
    active = (guidance.low <= k) & ((k <= guidance.high) | (guidance.high == 0))
    ndim = outputs.ndim
    text = expand(jnp.where(active, guidance.text, 1.0), ndim)
    full, base = parts[-1], parts[0]
    if ways == 3:
        image = expand(jnp.where(active, guidance.image, 1.0), ndim)
        guided = base + image * (parts[1] - base) + text * (full - parts[1])
    else:
        guided = base + text * (full - base)
    axes = tuple(range(1, ndim))
    spread = divide(full.std(axes, keepdims=True), guided.std(axes, keepdims=True))
    phi = expand(guidance.rescale, ndim)
    rescaled = guided * (1.0 - phi + phi * spread)
    # `full` itself outside of the interval: the sums above only come near it.
    return jnp.where(active, rescaled, full)


def guided(
    model: Callable[[jax.Array, jax.Array, Any], jax.Array],
    condition: Any,
    guidance: Guidance,
    ways: int,
) -> Callable[[jax.Array, Point], jax.Array]:
    """`predict(x, point) -> output` for `samplers.denoiser`.

    Args:
        model: `model(x, t, condition) -> output`: x `[ways * B, ...]`, t `[ways * B]` float32 and
            the stacked condition in, an output like x out. Called once a step.
        condition: from `stack`, with leading axis ways * B.
        guidance: from `make`; its numbers may be traced.
        ways: how many evaluations are stacked (static).
    """

    def predict(x: jax.Array, point: Point) -> jax.Array:
        stacked = jnp.concatenate([x] * ways) if ways > 1 else x
        t = jnp.broadcast_to(point.t, stacked.shape[:1]).astype(jnp.float32)
        return combine(model(stacked, t, condition), guidance, ways, point.k)

    return predict
