"""The training loss of a denoising network, on images `[B, H, W, C]` or videos `[B, T, H, W, C]`.

Knows no network: it is given `model(x, t) -> output` with x like the clean latents and t `[B]`.

The paper shifts the mean of the *initial* noise when sampling (its latent noise prior) and says
nothing of training. Here the loss is the plain one: the prior's default form stands for the signal
that the forward process leaves in x at the first timestep, so a network trained on the plain
forward process has seen exactly such inputs. That choice is this project's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mv2_jax.config import ScheduleConfig, nearest
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import prediction, schedules

SAMPLINGS = ("uniform", "logit_normal")
WEIGHTINGS = ("plain", "min_snr", "min_snr_floor")


@dataclass(frozen=True)
class LossConfig:
    """How timesteps are drawn and errors weighed (static).

    `sampling`: "uniform" over all timesteps, or "logit_normal" (arXiv 2403.03206, sec. 3.1):
    u = sigmoid(location + scale * normal), t = u * train_steps.
    `shift` s moves either towards noise (s > 1) or towards signal: u -> s u / (1 + (s - 1) u).

    `weighting`: "plain" is the mean squared error of the network's own output.
    "min_snr" caps the SNR weight of the x0 error at `gamma` (arXiv 2303.09556). On v it weighs
    a step of zero SNR with 0, so that a zero-terminal-SNR schedule's last step is never learnt:
    "min_snr_floor" is the same cap with the v and x0 weights floored to an SNR of one,
    min(SNR + 1, gamma) in place of min(SNR, gamma).
    """

    sampling: str = "uniform"
    location: float = 0.0
    scale: float = 1.0
    shift: float = 1.0
    weighting: str = "plain"
    gamma: float = 5.0


def sample_t(keys: jax.Array, train_steps: int, cfg: LossConfig = LossConfig()) -> jax.Array:
    """Random timesteps `[B]` int32 in 0..train_steps-1, one per key.

    Raises:
        ValueError: `cfg.sampling` is unknown or `cfg.shift` is not positive.
    """
    if cfg.sampling not in SAMPLINGS:
        known = ", ".join(SAMPLINGS)
        hint = nearest(cfg.sampling, SAMPLINGS)
        raise ValueError(f"unknown timestep sampling {cfg.sampling!r} (known: {known}){hint}")
    if cfg.shift <= 0:
        raise ValueError(f"timestep shift must be positive, not {cfg.shift}; 1 shifts nothing")
    keys = named.fold(keys, "timestep")
    if cfg.sampling == "uniform":
        u = named.uniform(keys)
    else:
        u = jax.nn.sigmoid(cfg.location + cfg.scale * named.normal(keys, ()))
    u = cfg.shift * u / (1.0 + (cfg.shift - 1.0) * u)
    # u rounds up to 1.0 now and then in float32.
    return jnp.minimum((u * train_steps).astype(jnp.int32), train_steps - 1)


def weight(alpha: jax.Array, sigma: jax.Array, kind: str, cfg: LossConfig) -> jax.Array:
    """The weight of the squared error of an output of this kind, like `alpha`.

    Written in alpha^2 = SNR / (SNR + 1) and sigma^2 = 1 / (SNR + 1), finite at both ends of the
    schedule.

    Raises:
        ValueError: `cfg.weighting` or `kind` is unknown.
    """
    prediction.check(kind)
    if cfg.weighting not in WEIGHTINGS:
        known = ", ".join(WEIGHTINGS)
        hint = nearest(cfg.weighting, WEIGHTINGS)
        raise ValueError(f"unknown loss weighting {cfg.weighting!r} (known: {known}){hint}")
    if cfg.weighting == "plain":
        return jnp.ones_like(alpha)
    signal, noise = alpha**2, sigma**2
    # Both numerators are divided by SNR + 1, which is the weight of the v error.
    floored = cfg.weighting == "min_snr_floor" and kind != "eps"
    of_v = jnp.minimum(jnp.ones_like(signal) if floored else signal, cfg.gamma * noise)
    if kind == "v":
        return of_v
    if kind == "x0":
        return of_v / noise
    return jnp.where(of_v == signal, 1.0, prediction.divide(of_v, signal))


def per_sample(error: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The mean `[B]` of `error` `[B, ...]` over each sample, where `mask` is given weighed by it.

    `mask` covers error's first axes ([B], [B, T], [B, H, W], ...) with weights of 0 or more. A
    sample that is masked out entirely has loss 0.

    Raises:
        ValueError: the mask's shape does not start error's shape.
    """
    axes = tuple(range(1, error.ndim))
    if mask is None:
        return error.mean(axes)
    if mask.shape != error.shape[: mask.ndim]:
        raise ValueError(f"a mask of shape {mask.shape} does not fit an error of {error.shape}")
    mask = jnp.broadcast_to(prediction.expand(mask.astype(error.dtype), error.ndim), error.shape)
    return prediction.divide((mask * error).sum(axes), mask.sum(axes))


def diffusion_loss(
    model: Callable[[jax.Array, jax.Array], jax.Array],
    x0: jax.Array,
    keys: jax.Array,
    schedule: ScheduleConfig,
    cfg: LossConfig = LossConfig(),
    mask: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The denoising loss of one batch.

    Args:
        model: `model(x, t)`: noisy latents like x0 and timesteps `[B]` float32 in, an output of
            the kind `schedule.prediction` out, shaped like x0.
        x0: clean, scaled latents `[B, ..., C]`.
        keys: typed keys `[B]`, one per sample.
        mask: weights over x0's first axes, or None: see `per_sample`. Samples that are masked
            out entirely do not count in the batch's mean.

    Returns:
        (loss `[]`, metrics): `mse` is the unweighted error, `mse_noisy` and `mse_clean` are the
        same over the noisier and the cleaner half of the timesteps (0 where a batch has none).

    Raises:
        ValueError: an unknown word in a config, or shapes that do not fit.
    """
    x0 = x0.astype(jnp.float32)
    t = sample_t(keys, schedule.train_steps, cfg)
    alpha, sigma = (jnp.asarray(a)[t] for a in schedules.signal_and_noise(schedule))
    eps = named.normal(named.fold(keys, "noise"), x0.shape[1:])
    output = model(prediction.noised(x0, eps, alpha, sigma), t.astype(jnp.float32))
    if output.shape != x0.shape:
        raise ValueError(f"the network answered {output.shape} to latents of {x0.shape}")
    wanted = prediction.target(schedule.prediction, x0, eps, alpha, sigma)
    mse = per_sample((output.astype(jnp.float32) - wanted) ** 2, mask)
    counts = jnp.ones_like(mse) if mask is None else _counts(mask)
    loss = _mean(mse * weight(alpha, sigma, schedule.prediction, cfg), counts)
    noisy = (t >= schedule.train_steps // 2).astype(mse.dtype)
    metrics = {
        "mse": _mean(mse, counts),
        "mse_noisy": _mean(mse, counts * noisy),
        "mse_clean": _mean(mse, counts * (1.0 - noisy)),
    }
    return loss, metrics


def _counts(mask: jax.Array) -> jax.Array:
    """1 for samples `[B]` that have anything unmasked, else 0."""
    return (mask.reshape(mask.shape[0], -1) > 0).any(-1).astype(jnp.float32)


def _mean(values: jax.Array, counts: jax.Array) -> jax.Array:
    return prediction.divide((values * counts).sum(), counts.sum())
