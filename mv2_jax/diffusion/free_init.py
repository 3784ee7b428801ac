"""FreeInit (arXiv 2312.07537): a chain begun again from the low frequencies of what it ended in.

Training never shows a video network pure noise: some of a clip's slow, large-scale signal is left
at the last timestep. FreeInit brings the end of one chain back to that timestep with its own first
noise, keeps the low frequencies of that, over time and space, and fills in new noise for the rest.

Two things differ from diffusers' FreeInitMixin. It noises to the last *training* timestep, whatever
the first sampled one is, and mixes in unit noise, whatever the sampler starts from; here both are
the grid's own first point. And its filter is off centre where a side is odd (75 x 75 latents), so
that what it makes is not real; here every frequency has its own gain. On even sides the filters are
equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mv2_jax.diffusion import noise_prior, samplers
from mv2_jax.diffusion.points import Grid
from mv2_jax.lookup import one_of

KINDS = ("butterworth", "gaussian")
AXES = (1, 2, 3)  # frames, height, width of [B, T, H, W, C]


def low_pass(
    shape: Sequence[int],
    kind: str = "butterworth",
    *,
    spatial: float = 0.25,
    temporal: float = 0.25,
    order: int = 4,
) -> np.ndarray:
    """The gain of every frequency, float32 [T, H, W] in the order of `fft`: 1 at none, falling.

    Args:
        shape: (T, H, W).
        kind: "butterworth" of this `order`, or "gaussian" (the paper's two; it prefers the first).
        spatial, temporal: where the filter stops, as parts of the highest frequency, 0..1. At 0
            nothing passes.

    Raises:
        ValueError: an unknown kind, or a stop that is not in 0..1.
    """
    one_of(kind, KINDS, "filter")
    for name, stop in (("spatial", spatial), ("temporal", temporal)):
        if not 0 <= stop <= 1:
            raise ValueError(f"the {name} stop goes from 0 to 1, not {stop}")
    if not (spatial and temporal):
        return np.zeros(tuple(shape), np.float32)
    t, h, w = np.meshgrid(*(2 * np.fft.fftfreq(side) for side in shape), indexing="ij")
    distance = ((spatial / temporal) * t) ** 2 + h**2 + w**2
    if kind == "gaussian":
        return np.exp(-distance / (2 * spatial**2)).astype(np.float32)
    return (1 / (1 + (distance / spatial**2) ** order)).astype(np.float32)


def mixed(
    low: Float[Array, "B T H W C"],
    high: Float[Array, "B T H W C"],
    gain: Float[np.ndarray, "T H W"],
) -> Float[Array, "B T H W C"]:
    """`low`'s frequencies by `gain` [T, H, W] and `high`'s by what is left: all [B, T, H, W, C]."""
    # The gain is even, so that half of the last axis says it all, and both signals need one FFT.
    half = jnp.asarray(gain[..., : gain.shape[-1] // 2 + 1])[None, ..., None]
    difference = jnp.fft.rfftn(low - high, axes=AXES) * half
    return high + jnp.fft.irfftn(difference, s=gain.shape, axes=AXES)


def restart(
    grid: Grid,
    x0: Float[Array, "B T H W C"],
    eps: Float[Array, "B T H W C"],
    fresh: Float[Array, "B T H W C"],
    gain: Float[np.ndarray, "T H W"],
) -> Float[Array, "B T H W C"]:
    """The start x of a chain begun again.

    Args:
        grid: the sampler's.
        x0: where the chain before ended, scaled latents [B, T, H, W, C].
        eps: the standard normal noise that the first chain began with, like x0.
        fresh: new standard normal noise, like x0.
        gain: `low_pass` of x0's shape.
    """
    back = samplers.renoise(grid, 0, x0, eps)
    return mixed(back, noise_prior.plain(grid, fresh), gain)
