"""Training losses of denoising networks, on images `[B, H, W, C]` or videos `[B, T, H, W, C]`.

They know no network: they are given `model(x, t) -> output` with x like the clean latents and t
`[B]`. A loss is a value (`Loss`); `LossConfig` is the one here, over any process, and its ways to
draw timesteps and to weigh errors are functions found by name, one's own too.

The paper shifts the mean of the *initial* noise when sampling (its latent noise prior) and says
nothing of training. Here the loss is the plain one: the prior's default form stands for the signal
that the forward process leaves in x at the first timestep, so a network trained on the plain
forward process has seen exactly such inputs. That choice is this project's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp

from mv2_jax import config, lookup
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import prediction
from mv2_jax.diffusion import process as processes
from mv2_jax.diffusion.names import LOSSES, SAMPLINGS, WEIGHTINGS
from mv2_jax.diffusion.points import Point
from mv2_jax.diffusion.process import Process
from mv2_jax.errors import InputError

Model = Callable[[jax.Array, jax.Array], jax.Array]
Metrics = dict[str, jax.Array]
Loss = Callable[..., tuple[jax.Array, Metrics]]
"""`loss(model, x0, keys, process, mask) -> (loss [], metrics)`: see `diffusion_loss`."""


@dataclass(frozen=True)
class LossConfig:
    """How timesteps are drawn and errors weighed (static).

    `sampling` is one of `names.SAMPLINGS` or `module:function`, which gives positions u in 0..1:
    "uniform" over the process's own time; "logit_normal" (arXiv 2403.03206, sec. 3.1),
    u = sigmoid(location + scale * normal); "mode" (the same section), with `scale` its s;
    "log_normal" (arXiv 2206.00364, table 1), log(sigma / alpha) = location + scale * normal.
    `shift` s moves any towards noise (s > 1) or towards signal: u -> s u / (1 + (s - 1) u).

    `weighting` is one of `names.WEIGHTINGS` or `module:function`. "plain" is the mean squared error
    of the network's own output. "snr" is that of the noise which the output implies: the x0 error
    by SNR. "min_snr" caps that weight at `gamma` (arXiv 2303.09556). On v it weighs a step of zero
    SNR with 0, so that a zero-terminal-SNR schedule's last step is never learnt: "min_snr_floor" is
    the same cap with the weights (but of eps) floored to an SNR of one, min(SNR + 1, gamma) in
    place of min(SNR, gamma). "p2" is the noise's error by 1 / (1 + SNR) (arXiv 2204.00227 with its
    k and gamma at 1). "cosmap" is rectified flow's of arXiv 2403.03206, sec. 3.1.

    `noise_offset` adds that times one more normal number a sample and channel to all of its noise,
    as diffusers' training scripts do, so that a network of a process which never loses its signal
    still learns to move a picture's mean. A clip has one for all of its frames (this project's
    choice: one a frame would teach it to flicker). 0 adds nothing.
    """

    sampling: str = "uniform"
    location: float = 0.0
    scale: float = 1.0
    shift: float = 1.0
    weighting: str = "plain"
    gamma: float = 5.0
    noise_offset: float = 0.0

    def __call__(
        self,
        model: Model,
        x0: jax.Array,
        keys: jax.Array,
        process: Process,
        mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """See `diffusion_loss`."""
        check_offset(self, process)
        u = positions(keys, self, process)
        point = process.at(u)
        mse, counts = _errors(model, x0, keys, point, process, mask, self.noise_offset)
        scale = weight(point.alpha, point.sigma, process.prediction, self)
        noisy = (u >= 0.5).astype(mse.dtype)
        metrics = {
            "mse": _mean(mse, counts),
            "mse_noisy": _mean(mse, counts * noisy),
            "mse_clean": _mean(mse, counts * (1.0 - noisy)),
        }
        return _mean(mse * scale, counts), metrics


@dataclass(frozen=True)
class At:
    """The loss at one position `u` [] of the process for all samples: the mean squared error of the
    network's own output, unweighted."""

    u: jax.Array

    def __call__(
        self,
        model: Model,
        x0: jax.Array,
        keys: jax.Array,
        process: Process,
        mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """See `diffusion_loss`."""
        point = process.at(jnp.full(x0.shape[:1], self.u, jnp.float32))
        return _mean(*_errors(model, x0, keys, point, process, mask)), {}


def _errors(
    model: Model,
    x0: jax.Array,
    keys: jax.Array,
    point: Point,
    process: Process,
    mask: jax.Array | None,
    offset: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """The mean squared error [B] of each sample, and whether it counts [B]."""
    eps = noise(keys, x0.shape[1:], offset)
    wanted, output = asked(model, x0, eps, point, process)
    mse = per_sample((output - wanted) ** 2, mask)
    return mse, jnp.ones_like(mse) if mask is None else _counts(mask)


def noise(keys: jax.Array, shape: Sequence[int], offset: float = 0.0) -> jax.Array:
    """What samples of `shape` `[..., C]` are noised with, `[B, ..., C]`: see `LossConfig`."""
    eps = named.normal(named.fold(keys, "noise"), shape)
    if not offset:
        return eps
    moved = named.normal(named.fold(keys, "noise_offset"), (*[1] * (len(shape) - 1), shape[-1]))
    return eps + offset * moved


def check_offset(cfg: LossConfig, process: Process) -> None:
    """Refuses a noise offset over a process that ends without signal: it would be trained to begin
    at other noise than the standard normal one that sampling begins at.

    Raises:
        InputError: so, or the offset is negative.
    """
    if cfg.noise_offset < 0:
        raise InputError(f"noise_offset is {cfg.noise_offset}: it must be 0 or more")
    if not cfg.noise_offset:
        return
    with jax.ensure_compile_time_eval():
        signal = float(process.at(jnp.ones(1)).alpha[0])
    if not signal:
        raise InputError(
            "noise_offset does not go with a process that ends in noise alone (zero-terminal SNR, "
            "rectified flow): sampling begins at noise without it, and such a process needs none; "
            "set it to 0"
        )


class _Watched(LossConfig):
    """One that notes which of its fields are looked at."""

    def __getattribute__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        own.setdefault("looked_at", set()).add(name)
        return object.__getattribute__(self, name)


def unread(cfg: LossConfig, process: Process) -> set[str]:
    """Its fields that its sampling and its weighting do not look at, one's own too: whatever they
    are, the loss is the same."""
    watched = _Watched(**vars(cfg))

    def look(keys: jax.Array) -> jax.Array:
        point = process.at(positions(keys, watched, process))
        return weight(point.alpha, point.sigma, process.prediction, watched)

    jax.eval_shape(look, named.seeds([0]))
    # What the noise is made of is neither's.
    return {*vars(cfg)} - vars(watched)["looked_at"] - {"noise_offset"}


def of(value: Any) -> Loss:
    """The loss that a recipe's setting stands for.

    Args:
        value: a LossConfig's fields; a config in JSON's form, its class under "class"; the name of
            a loss; or a loss itself.

    Raises:
        InputError: an unknown name or field, or what is found is no loss.
    """
    if hasattr(value, "to_dict"):  # of ml_collections
        value = value.to_dict()
    if isinstance(value, Mapping):
        value = config.from_dict({"class": "LossConfig", **value})
    elif isinstance(value, str):
        value = lookup.find(value, LOSSES, "loss", fits=callable, wants="a loss")
    value = value() if isinstance(value, type) else value
    if not callable(value):
        raise InputError(f"{value!r} is no loss: it cannot be called (see diffusion.losses.Loss)")
    return cast(Loss, value)


def positions(
    keys: jax.Array, cfg: LossConfig = LossConfig(), process: Process | None = None
) -> jax.Array:
    """Random positions `[B]` in 0..1 of a process, one per key.

    Raises:
        ValueError: `cfg.sampling` is unknown or `cfg.shift` is not positive.
    """
    draw = lookup.find(cfg.sampling, SAMPLINGS, "timestep sampling", fits=callable)
    if cfg.shift <= 0:
        raise ValueError(f"timestep shift must be positive, not {cfg.shift}; 1 shifts nothing")
    u = draw(named.fold(keys, "timestep"), cfg, process)
    return cfg.shift * u / (1.0 + (cfg.shift - 1.0) * u)


def uniform(keys: jax.Array, cfg: LossConfig, process: Process | None) -> jax.Array:
    """A sampling: positions `[B]` from keys `[B]`, over a process. Here: all alike."""
    return named.uniform(keys)


def logit_normal(keys: jax.Array, cfg: LossConfig, process: Process | None) -> jax.Array:
    return jax.nn.sigmoid(cfg.location + cfg.scale * named.normal(keys, ()))


def mode(keys: jax.Array, cfg: LossConfig, process: Process | None) -> jax.Array:
    u = named.uniform(keys)
    return 1.0 - u - cfg.scale * (jnp.cos(math.pi * u / 2) ** 2 - 1.0 + u)


def log_normal(keys: jax.Array, cfg: LossConfig, process: Process | None) -> jax.Array:
    if process is None:
        raise ValueError("timestep sampling 'log_normal' needs the process")
    return position_of(process, jnp.exp(cfg.location + cfg.scale * named.normal(keys, ())))


def position_of(process: Process, k: jax.Array) -> jax.Array:
    """Where in a process sigma / alpha is k: positions like k, by halving; past an end, the end."""

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        below = process.at(middle).k < k
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    ends = jnp.zeros_like(k), jnp.ones_like(k)
    low, high = jax.lax.fori_loop(0, 24, halve, ends)
    return (low + high) / 2


def asked(
    model: Model, x0: jax.Array, eps: jax.Array, point: Point, process: Process
) -> tuple[jax.Array, jax.Array]:
    """What the network should output at noised samples, and what it does: float32, like x0.

    Raises:
        ValueError: it outputs another shape.
    """
    x0, kind = x0.astype(jnp.float32), process.prediction
    output = model(prediction.noised(x0, eps, point.alpha, point.sigma), point.t)
    if output.shape != x0.shape:
        raise ValueError(f"the network answered {output.shape} to latents of {x0.shape}")
    wanted = prediction.target(kind, x0, eps, point.alpha, point.sigma)
    return wanted, output.astype(jnp.float32)


def weight(alpha: jax.Array, sigma: jax.Array, kind: prediction.Kind, cfg: LossConfig) -> jax.Array:
    """The weight of the squared error of an output of this kind, like `alpha`.

    Raises:
        ValueError: `cfg.weighting` or `kind` is unknown.
    """
    weigh = lookup.find(cfg.weighting, WEIGHTINGS, "loss weighting", fits=callable)
    prediction.get(kind)
    return weigh(alpha, sigma, kind, cfg)


def plain(alpha: jax.Array, sigma: jax.Array, kind: prediction.Kind, cfg: LossConfig) -> jax.Array:
    """A weighting: what the squared error of an output of this `kind` weighs. Here: all alike."""
    return jnp.ones_like(alpha)


def snr(alpha: jax.Array, sigma: jax.Array, kind: prediction.Kind, cfg: LossConfig) -> jax.Array:
    if kind == "eps":  # that error itself, also where there is no signal
        return jnp.ones_like(alpha)
    return prediction.divide(alpha * gain(alpha, sigma, kind), sigma) ** 2


def p2(alpha: jax.Array, sigma: jax.Array, kind: prediction.Kind, cfg: LossConfig) -> jax.Array:
    return snr(alpha, sigma, kind, cfg) * sigma**2 / (alpha**2 + sigma**2)


def min_snr(
    alpha: jax.Array, sigma: jax.Array, kind: prediction.Kind, cfg: LossConfig
) -> jax.Array:
    return _capped(alpha, sigma, kind, cfg.gamma, 0.0)


def min_snr_floor(
    alpha: jax.Array, sigma: jax.Array, kind: prediction.Kind, cfg: LossConfig
) -> jax.Array:
    return _capped(alpha, sigma, kind, cfg.gamma, 0.0 if kind == "eps" else 1.0)


def cosmap(alpha: jax.Array, sigma: jax.Array, kind: prediction.Kind, cfg: LossConfig) -> jax.Array:
    # Their formula in sigma, with 1 - sigma written as what it is there.
    share = sigma / (alpha + sigma)
    return 2.0 / (math.pi * (1.0 - 2.0 * share + 2.0 * share**2))


def gain(alpha: jax.Array, sigma: jax.Array, kind: prediction.Kind) -> jax.Array:
    """By how much an error of the output is an error of x0, like `alpha` (signed).

    The way from one to the other is affine, so that it is what an output of 1 adds.
    """
    nothing = jnp.zeros_like(alpha)
    to_x0 = prediction.get(kind).to_x0
    return to_x0(nothing + 1.0, nothing, alpha, sigma) - to_x0(nothing, nothing, alpha, sigma)


def _capped(
    alpha: jax.Array, sigma: jax.Array, kind: prediction.Kind, gamma: float, floor: float
) -> jax.Array:
    """min(SNR + floor, gamma) on the x0 error, finite at both ends of a process."""
    signal, noise = alpha**2, sigma**2
    top = jnp.minimum(signal + floor * noise, gamma * noise)
    if kind == "eps":
        return jnp.where(top == signal, 1.0, prediction.divide(top, signal))
    return (
        jnp.where(noise == 0, gamma, prediction.divide(top, noise)) * gain(alpha, sigma, kind) ** 2
    )


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
    model: Model,
    x0: jax.Array,
    keys: jax.Array,
    schedule: Any,
    cfg: Loss = LossConfig(),
    mask: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The denoising loss of one batch, `cfg`'s.

    Args:
        model: `model(x, t)`: noisy latents like x0 and timesteps `[B]` float32 in, an output of
            the process's prediction out, shaped like x0.
        x0: clean, scaled latents `[B, ..., C]`.
        keys: typed keys `[B]`, one per sample.
        schedule: the process, or what stands for one (`process.of`).
        mask: weights over x0's first axes, or None: see `per_sample`. Samples that are masked
            out entirely do not count in the batch's mean.

    Returns:
        (loss `[]`, metrics): of a LossConfig `mse` is the unweighted error, `mse_noisy` and
        `mse_clean` are the same over the noisier and the cleaner half of the positions (0 where a
        batch has none).

    Raises:
        ValueError: an unknown word in a config, or shapes that do not fit.
    """
    return cfg(model, x0, keys, processes.of(schedule), mask)


def _counts(mask: jax.Array) -> jax.Array:
    """1 for samples `[B]` that have anything unmasked, else 0."""
    return (mask.reshape(mask.shape[0], -1) > 0).any(-1).astype(jnp.float32)


def _mean(values: jax.Array, counts: jax.Array) -> jax.Array:
    return prediction.divide((values * counts).sum(), counts.sum())
