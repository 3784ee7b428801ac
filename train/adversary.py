"""What a GAN's two sides minimise, and how strongly the critic may pull (arXiv 2012.09841)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mv2_jax import shards

Score = Callable[[jax.Array], jax.Array]
Judged = Callable[..., list[jax.Array]]
"""(the critic's tree, batches of pictures) -> the logits of each batch."""

_TINY = 1e-8
_STRONGEST = 1e4


def hinge(real: jax.Array, made: jax.Array) -> jax.Array:
    """The critic's loss from its logits of real and of made pictures, any shapes."""
    return 0.5 * (jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + made)))


def balanced(
    made: jax.Array, quality: Score, doubt: Score, weight: float | jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """quality(made) + w * doubt(made), w such that both pull equally hard, times `weight`.

    VQGAN's adaptive weight, w = |d quality| / |d doubt|, which takes both gradients at the last
    layer's weights. Here they are taken at the picture: its last layer lies before a sum of fifty
    reads, through which each gradient would have to pass once more.

    Both scores are differentiated once, here; what is returned passes the joint gradient on to
    whatever made the picture.

    Args:
        made: pictures [B, H, W, 3].
        quality, doubt: pictures -> scalar; neither may depend on anything that is trained by it.
        weight: scalar, traced or not; 0 leaves `quality` alone.

    Returns:
        A scalar with its gradient, and the scalars {"quality", "doubt", "doubt_weight"}.
    """
    fixed = jax.lax.stop_gradient(made)
    good, pull = jax.value_and_grad(quality)(fixed)
    bad, push = jax.value_and_grad(doubt)(fixed)
    ratio = jnp.linalg.norm(pull.ravel()) / (jnp.linalg.norm(push.ravel()) + _TINY)
    ratio = jnp.clip(ratio, 0.0, _STRONGEST) * weight
    steered = jnp.sum(made * jax.lax.stop_gradient(pull + ratio * push))
    value = jax.lax.stop_gradient(good + ratio * bad - steered) + steered
    return value, {"quality": good, "doubt": bad, "doubt_weight": ratio}


def judge(critic: nn.Module, tree: Any, *images: jax.Array) -> list[jax.Array]:
    """What a critic says to batches of equal size, all at once: the logits of each."""

    def together(tree: Any, *images: jax.Array) -> list[jax.Array]:
        both = critic.apply({"params": tree}, jnp.concatenate(images))
        return jnp.split(both, len(images))

    return shards.over_samples(together, tree, *images, gathered=False)


def active(step: int, start: int, count: int) -> np.ndarray:
    """Of a batch's `count` samples, 1 each once the critic takes part, from `start` on, else 0."""
    return np.full((count,), step >= start, np.float32)


def versus(
    judged: Judged,
    critic: Any,
    made: jax.Array,
    real: jax.Array,
    quality: Score,
    weight: float,
    taking_part: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Both sides' losses in one: the maker's, `balanced`, and the critic's, `hinge`.

    Each trains its own side alone, so one optimiser may serve both: Adam's steps do not depend on
    how a loss is scaled.

    Args:
        judged: see `Judged` and `judge`.
        made, real: pictures [B, H, W, 3].
        quality: what of the maker's loss does not come from the critic; see `balanced`.
        taking_part: `active` of the batch, [B]; while it is 0 the critic neither pulls nor learns.

    Returns:
        A scalar, and `balanced`'s scalars with "loss_critic".
    """
    on, fixed = jnp.mean(taking_part), jax.lax.stop_gradient(critic)
    pulled, terms = balanced(made, quality, lambda x: -jnp.mean(judged(fixed, x)[0]), on * weight)
    loss = on * hinge(*judged(critic, real, jax.lax.stop_gradient(made)))
    return pulled + loss, {**terms, "loss_critic": loss}
