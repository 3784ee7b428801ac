"""Networks in torch and here, on the same weights and inputs (`mv2 bench cascade`, benchmarks/)."""

from __future__ import annotations

from typing import Any

import numpy as np


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> tuple[float, float]:
    """The largest and the mean difference, each output's relative to its largest magnitude."""
    worst, mean = [], []
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"outputs of {a.shape} and {b.shape}")
        off, size = np.abs(a.astype(np.float64) - b), np.abs(b).max()
        worst.append(float(off.max() / size))
        mean.append(float(off.mean() / size))
    return max(worst), max(mean)


def randomise(module: Any) -> Any:
    """Random values for every parameter, those that begin at zero too.

    Matrices keep activations near unit scale, norms are near one. One tensor at a time, each from
    a generator of its own, so that the values do not depend on the order.
    """
    import torch

    with torch.no_grad():
        for number, (name, tensor) in enumerate(module.named_parameters()):
            noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
            if tensor.ndim > 1:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            else:
                tensor.copy_(0.1 * noise + ("norm" in name and name.endswith("weight")))
    return module.eval()
