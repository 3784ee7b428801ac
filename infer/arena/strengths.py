"""Bradley-Terry with ties: one strength a system from votes on pairs of them.

Davidson's model (JASA 65, 1970): of systems i and j with strengths s (log-odds), a vote is "i",
"same" or "j" with weights exp((s_i - s_j) / 2), nu and exp((s_j - s_i) / 2). In s and log nu that
is a multinomial logit, whose likelihood has one maximum: Newton's steps find it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_STEPS = 100
_RIDGE = 1e-9  # keeps systems that no vote compares where they are


class Fit(NamedTuple):
    """strengths [..., systems], of mean 0; log_nu [...]: how common ties are."""

    strengths: np.ndarray
    log_nu: np.ndarray


def fit(counts: np.ndarray, pairs: np.ndarray, systems: int, prior: float = 0.5) -> Fit:
    """The likeliest strengths, of many tables of counts at a time.

    Args:
        counts: [..., pairs, 3]: votes for the first, same, for the second of each pair.
        pairs: [pairs, 2]: which systems.
        prior: votes that are added to every pair that has some, spread as its outcomes would be
            were all equal: so strengths are finite even where one system wins always.
    """
    counts = np.asarray(counts, np.float64)
    shape, tables = counts.shape[:-2], counts.reshape(-1, *counts.shape[-2:])
    seen = tables.sum(axis=2, keepdims=True) > 0
    tables = tables + prior * seen / 3
    design = _design(np.asarray(pairs), systems)
    theta = np.zeros((len(tables), systems))  # systems - 1 strengths against the first, and log nu
    value = _likelihood(theta, tables, design)
    for _ in range(_STEPS):
        chances = _chances(theta, design)
        votes = tables.sum(axis=2, keepdims=True)
        slope = np.einsum("bpk,pkt->bt", tables - votes * chances, design)
        mean = np.einsum("bpk,pkt->bpt", chances, design)
        centred = design[None] - mean[:, :, None]
        bend = np.einsum("bpk,bpkt,bpku->btu", votes * chances, centred, centred)
        bend += _RIDGE * np.eye(systems)
        step = np.linalg.solve(bend, slope[..., None])[..., 0]
        for _ in range(40):  # a full step may go too far; the likelihood is concave
            after = _likelihood(theta + step, tables, design)
            worse = after < value - 1e-12 * np.abs(value)
            if not worse.any():
                break
            step = np.where(worse[:, None], step / 2, step)
        theta, value = theta + step, after
        if np.abs(step).max(initial=0.0) < 1e-10:
            break
    strengths = np.concatenate([np.zeros((len(theta), 1)), theta[:, :-1]], axis=1)
    strengths -= strengths.mean(axis=1, keepdims=True)
    return Fit(strengths.reshape(*shape, systems), theta[:, -1].reshape(shape))


def chances(strengths: np.ndarray, log_nu: float, pairs: np.ndarray) -> np.ndarray:
    """Probabilities [pairs, 3] of the first, same and the second."""
    strengths = np.asarray(strengths, np.float64)
    theta = np.append(strengths[1:] - strengths[0], log_nu)
    return _chances(theta[None], _design(np.asarray(pairs), len(strengths)))[0]


def connected(counts: np.ndarray, pairs: np.ndarray, systems: int) -> bool:
    """Whether votes [pairs, 3] compare all systems, be it by way of others."""
    reached, found = {0}, True
    while found:
        found = False
        for (first, second), votes in zip(np.asarray(pairs).tolist(), counts):
            if votes.sum() > 0 and (first in reached) != (second in reached):
                reached |= {first, second}
                found = True
    return len(reached) == systems


def _design(pairs: np.ndarray, systems: int) -> np.ndarray:
    """[pairs, 3, systems]: each outcome's logit as a sum over the parameters."""
    design = np.zeros((len(pairs), 3, systems))
    for pair, (first, second) in enumerate(pairs.tolist()):
        for system, sign in ((first, 0.5), (second, -0.5)):
            if system > 0:  # the first system's strength is 0
                design[pair, 0, system - 1] += sign
                design[pair, 2, system - 1] -= sign
        design[pair, 1, -1] = 1.0
    return design


def _chances(theta: np.ndarray, design: np.ndarray) -> np.ndarray:
    logits = np.einsum("pkt,bt->bpk", design, theta)
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    return weights / weights.sum(axis=2, keepdims=True)


def _likelihood(theta: np.ndarray, tables: np.ndarray, design: np.ndarray) -> np.ndarray:
    logits = np.einsum("pkt,bt->bpk", design, theta)
    top = logits.max(axis=2, keepdims=True)
    total = top + np.log(np.exp(logits - top).sum(axis=2, keepdims=True))
    ridge = 0.5 * _RIDGE * (theta**2).sum(axis=1)
    return (tables * (logits - total)).sum(axis=(1, 2)) - ridge
