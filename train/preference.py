"""Diffusion-DPO (arXiv 2311.12908): learning which of two samples people like better.

The paper's bound on the preference likelihood (its eq. 14) compares, at one noise level, how much
better than a frozen reference the network denoises the better sample with how much better it
denoises the worse one. Like the authors' code, a pair shares its timestep and its noise, errors are
means over elements, and beta stands for the paper's beta * T with a factor of one half.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mv2_jax import sharding
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import losses
from mv2_jax.diffusion import process as processes
from mv2_jax.diffusion.losses import LossConfig

Model = Callable[[jax.Array, jax.Array], jax.Array]


def dpo_loss(
    model: Model,
    reference: Model,
    better: jax.Array,
    worse: jax.Array,
    keys: jax.Array,
    schedule: Any,
    beta: float | jax.Array,
    cfg: LossConfig = LossConfig(),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a batch of pairs.

    Args:
        model, reference: `f(x, t)`, noisy latents [2 B, ..., C] (of each pair the better one, then
            the worse) and timesteps [2 B] in, an output of the process's prediction out. No
            gradient flows through the reference.
        better, worse: clean, scaled latents [B, ..., C].
        keys: typed keys [B], one a pair.
        schedule: the process, or what stands for one.
        beta: how closely to keep to the reference: the larger, the less may change.

    Returns:
        (loss [], metrics): `accuracy` is the share of pairs that the network prefers the right way
        round, `margin` the mean logit, `mse_better` and `mse_worse` the network's errors.

    Raises:
        ValueError: shapes that do not fit together, an unknown word in a config.
    """
    if better.shape != worse.shape:
        raise ValueError(f"pairs of {better.shape} and {worse.shape} are no pairs")
    x0 = paired(better, worse).astype(jnp.float32)
    process = processes.of(schedule)
    u = jnp.repeat(losses.positions(keys, cfg, process), 2)
    point = process.at(u)
    eps = named.normal(named.fold(keys, "noise"), better.shape[1:])
    eps = paired(eps, eps)
    weight = losses.weight(point.alpha, point.sigma, process.prediction, cfg)

    def errors(network: Model) -> jax.Array:
        wanted, output = losses.asked(network, x0, eps, point, process)
        return losses.per_sample((output - wanted) ** 2)

    own, before = errors(model), jax.lax.stop_gradient(errors(reference))
    gain_better, gain_worse = (weight * (own - before)).reshape(-1, 2).T
    logits = -0.5 * beta * (gain_better - gain_worse)
    mse_better, mse_worse = own.reshape(-1, 2).T
    metrics = {
        "accuracy": (logits > 0).astype(jnp.float32).mean(),
        "margin": logits.mean(),
        "mse_better": mse_better.mean(),
        "mse_worse": mse_worse.mean(),
    }
    return -jax.nn.log_sigmoid(logits).mean(), metrics


def paired(better: jax.Array, worse: jax.Array) -> jax.Array:
    """[B, ...] twice -> [2 B, ...], the two of a pair one after the other: where samples lie on
    several devices, none has to move."""
    both = sharding.constrain(jnp.stack([better, worse], axis=1), sharding.SAMPLES)
    return both.reshape(-1, *better.shape[1:])
