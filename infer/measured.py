"""The toybox's measures over many generated videos, beside those of true renders of their words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mv2_jax.toybox import intervals, measures

Means = dict[str, dict[str, intervals.Mean | None]]
"""{name: {"video": mean with interval, "truth": the same}}; None where nothing is known."""
Differs = dict[str, dict[str, float | None]]
"""How much seeds differ: {"x", "y", "radius": {"picture", "truth"}}."""

SEEDS = 8  # pictures of one prompt, to see how much seeds differ


class Tally:
    """Adds up measures batch by batch; `values` maps "video" and "truth" to {name: [N]}."""

    def __init__(self) -> None:
        self._parts: dict[str, list[dict[str, np.ndarray]]] = {"video": [], "truth": []}

    def add(self, frames: np.ndarray, pictures: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Measures videos [B, T, H, W, 3], which keep `pictures`, and as many true renders, which
        it returns."""
        seen = sum(len(part["thing"]) for part in self._parts["video"])
        true = measures.truth(words, frames.shape[1], frames.shape[2:4], seed=seen)
        self._parts["video"].append(measures.measure(frames, pictures, words))
        self._parts["truth"].append(measures.measure(true, true[:, 0], words))
        return true

    @property
    def values(self) -> dict[str, dict[str, np.ndarray]]:
        return {
            what: {name: np.concatenate([part[name] for part in parts]) for name in measures.NAMES}
            for what, parts in self._parts.items()
        }

    def means(self) -> Means:
        """The means over all videos."""
        values = self.values
        return {
            name: {what: _mean(name, values[what][name]) for what in values}
            for name in measures.NAMES
        }


def _mean(name: str, values: np.ndarray) -> intervals.Mean | None:
    """With the interval cut to what the measure can be: none is negative."""
    if not np.isfinite(values).any():
        return None
    return intervals.mean(values).within(0.0, 1.0 if name in measures.SHARES else np.inf)


def spread(
    picture: Callable[[list[str], list[int]], np.ndarray],
    prompts: Sequence[str],
    words: np.ndarray,
    size: tuple[int, int],
    batch: int,
) -> Differs:
    """How much pictures of one prompt differ by seed.

    Means over prompts of standard deviations over `SEEDS` seeds, in % of the frame's height.

    Args:
        picture: (prompts, seeds), `batch` of each, to pictures [batch, H, W, 3].
        words: [N, 4] indices of what the N prompts ask for.
        size: of the true renders.
    """
    found: dict[str, list[dict[str, float]]] = {"picture": [], "truth": []}
    for number, (prompt, row) in enumerate(zip(prompts, words)):
        made = []
        for first in range(0, SEEDS, batch):
            chosen = [min(seed, SEEDS - 1) for seed in range(first, first + batch)]
            made.extend(picture([str(prompt)] * batch, chosen)[: SEEDS - first])
        true = measures.truth(np.tile(row, (SEEDS, 1)), 1, size, seed=number)[:, 0]
        found["picture"].append(measures.spread(np.stack(made), row))
        found["truth"].append(measures.spread(true, row))
    return {
        axis: {what: _plain_mean([one[axis] for one in parts]) for what, parts in found.items()}
        for axis in ("x", "y", "radius")
    }


def _plain_mean(values: list[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None


def table(means: Means, differs: Differs) -> str:
    """Both results as lines of text."""
    lines = [f"{'':12}{'generated':>26}{'true renders':>26}"]
    for name, found in means.items():
        cells = "".join(f"{'-' if one is None else str(one):>26}" for one in found.values())
        lines.append(f"{name:12}{cells}   {measures.SAYS[name]}")
    for axis, found in differs.items():
        cells = "".join(f"{'-' if v is None else f'{v:.3g}':>26}" for v in found.values())
        lines.append(f"{'seeds, ' + axis:12}{cells}   how much seeds differ, % of the height")
    return "\n".join(lines)
