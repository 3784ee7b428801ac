"""Krippendorff's alpha: how far raters agree beyond chance, whoever has judged what.

After K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): coincidences of values
within units, against those that chance would make of the same values.
"""

from __future__ import annotations

import numpy as np

from mv2_jax.lookup import one_of

LEVELS = ("nominal", "ordinal", "interval")


def alpha(ratings: np.ndarray, level: str = "nominal") -> float:
    """Krippendorff's alpha: 1 is full agreement, 0 what chance gives, less is worse than chance.

    Args:
        ratings: [raters, units], nan where a rater has not judged a unit. Units of fewer than two
            ratings say nothing and are left out.
        level: "nominal", "ordinal" or "interval": which differences between values count as how
            large.

    Returns:
        Alpha; nan where no unit has two ratings, or where all ratings are the same value.

    Raises:
        ValueError: an unknown level.
    """
    one_of(level, LEVELS, "level")
    ratings = np.asarray(ratings, np.float64)
    ratings = ratings[:, np.isfinite(ratings).sum(axis=0) >= 2]
    values = np.unique(ratings[np.isfinite(ratings)])
    if len(values) < 2:
        return float("nan")
    counts = (ratings[None] == values[:, None, None]).sum(axis=1)  # [values, units]
    rated = counts.sum(axis=0)
    pairs = (
        np.einsum("cu,ku->cku", counts, counts) - np.eye(len(values))[..., None] * counts[:, None]
    )
    coincidences = (pairs / (rated - 1)).sum(axis=2)
    total = coincidences.sum(axis=0)
    expected = (np.outer(total, total) - np.diag(total)) / (total.sum() - 1)
    far = _distances(values, total, level)
    return float(1 - (coincidences * far).sum() / (expected * far).sum())


def _distances(values: np.ndarray, total: np.ndarray, level: str) -> np.ndarray:
    """Squared differences [values, values]; `total` [values] is how often each occurs."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "interval":
        return np.subtract.outer(values, values) ** 2
    # The ranks between two values, of which the outer two count by half.
    middle = np.cumsum(total) - total / 2
    return np.subtract.outer(middle, middle) ** 2
