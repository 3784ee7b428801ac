"""The optimiser: what a gradient becomes, and the learning rate over a phase.

The transformation here is for a learning rate of one; the step multiplies its result by the rate,
which the host computes and passes in. So the schedule may follow the clock as well as the step
count, and changing it compiles nothing.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from mv2_jax.lookup import one_of
from mv2_jax.train import moments

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "cosine", "linear", "warmup_stable_decay")


def check(cfg: Any) -> None:
    """Refuses words this module does not know, before anything runs.

    Raises:
        ValueError: names the unknown word and the nearest known one.
    """
    one_of(cfg.name, OPTIMIZERS, "optim.name")
    one_of(cfg.schedule, SCHEDULES, "optim.schedule")
    one_of(cfg.clock, ("steps", "time"), "optim.clock")
    one_of(cfg.states, moments.STATES, "optim.states")


def _name(path: tuple) -> str:
    return str(getattr(path[-1], "key", path[-1]))


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay pulls at: kernels, but no bias, norm or embedding."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _name(path) == "kernel" and leaf.ndim >= 2, params
    )


def matrix_axes(params: Any) -> Any:
    """For Muon: how each kernel is a matrix, (inputs, outputs); None for leaves Adam takes.

    First and last convolutions face pixels or latents instead of features; Adam takes them too.
    """

    def spec(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
        edge = any(str(getattr(p, "key", p)) in ("conv_in", "conv_out") for p in path)
        if _name(path) != "kernel" or leaf.ndim < 2 or edge:
            return None
        return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(spec, params)


def transformation(cfg: Any) -> optax.GradientTransformation:
    """Gradients -> the step taken at a learning rate of one (clipping by global norm included).

    "adamw": decoupled weight decay (arXiv 1711.05101). "muon": orthogonalised momentum for
    matrices and convolution kernels, scaled to AdamW's step size (arXiv 2502.16982), Adam
    (with Nesterov's momentum) for the rest; so both take the same learning rates. `cfg.states` is
    what the moments are stored as (`train.moments`).
    """
    if cfg.name == "muon":
        core = muon(
            1.0,
            beta=0.95,
            weight_decay=cfg.weight_decay,
            weight_decay_mask=decay_mask,
            adam_b1=cfg.b1,
            adam_b2=cfg.b2,
            muon_weight_dimension_numbers=matrix_axes,
            consistent_rms=0.2,
        )
    else:
        core = optax.chain(
            optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps),
            optax.add_decayed_weights(cfg.weight_decay, mask=decay_mask),
            optax.scale(-1.0),
        )
    core = moments.coded(core, cfg.states)
    return optax.chain(optax.clip_by_global_norm(cfg.clip), core) if cfg.clip else core


def rate(cfg: Any, step: int, fraction: float) -> float:
    """The learning rate of a step; `fraction` in [0, 1] says how far the phase has come.

    Warm-up is linear over `warmup` steps. The decay ends at `final` times `lr`; that of
    "warmup_stable_decay" starts at `decay_from` of the phase (arXiv 2404.06395).
    """
    warm = min(1.0, (step + 1) / cfg.warmup) if cfg.warmup else 1.0
    fraction = min(max(fraction, 0.0), 1.0)
    if cfg.schedule == "constant":
        left = 1.0
    elif cfg.schedule == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * fraction))
    elif cfg.schedule == "linear":
        left = 1.0 - fraction
    else:
        tail = max(1.0 - cfg.decay_from, 1e-9)
        left = 1.0 - max(0.0, fraction - cfg.decay_from) / tail
    return cfg.lr * warm * (cfg.final + (1.0 - cfg.final) * left)
