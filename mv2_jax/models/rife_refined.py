"""RIFE 4.0 with its refinement networks: frames at any time by flow (arXiv 2011.06294).

The network of hzwer/Practical-RIFE, version 4.0: four flow blocks from coarse to fine, as in 4.25
but without a feature head, and behind them what later versions dropped, a context network over each
frame and a U-Net that mends what warping leaves. The public code skips these two by default
("fast mode"); with them it is as good as 4.25.

Where flows are longer than 32 pixels the public code starts again with doubled scales; here the
scales are the config's, and `scales=(16, 8, 4, 2)` is what it would then use.

Letters: P pairs of frames, K times, H and W the padded plane, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from mv2_jax.config import RefinedRIFEConfig
from mv2_jax.models.ema_vfi import FLOW, Refiner
from mv2_jax.models.rife import UpConv
from mv2_jax.nn.bilinear import enlarge, reduce
from mv2_jax.nn.layers import Dtype
from mv2_jax.nn.prelu import ConvPReLU
from mv2_jax.nn.warp import warp

DEPTH = 8  # convolutions in a flow block
LEVELS = 4  # of the context network


class Pair(NamedTuple):
    """Both frames, padded, fp32 [P, H, W, 3], and each one's context, level by level."""

    first: Array
    second: Array
    contexts: tuple[list[Array], list[Array]]


class RefinedRIFE(nn.Module):
    """Frames between two frames, all in [0, 1].

    `features` makes what a pair contributes whatever the time, `at` a frame of it; `__call__` joins
    them. `dtype` is that of the convolutions; flows, warps and the blend are fp32.

    Raises:
        ValueError: a config that `check_config` refuses.
    """

    cfg: RefinedRIFEConfig
    dtype: Dtype = jnp.float32

    def setup(self):
        check_config(self.cfg)
        self.block = [FlowBlock(width, self.dtype) for width in self.cfg.widths]
        self.contextnet = Context(self.cfg.refine_width, self.dtype)
        self.unet = Refiner(self.cfg.refine_width, self.dtype)

    def __call__(self, first: Array, second: Array, times: Array) -> Array:
        """Two frames of any size [P, height, width, 3], times [P, K] in (0, 1), 0 the first's.

        Returns:
            fp32 [P, K, height, width, 3].
        """
        height, width = first.shape[1:3]
        pair = self.features(first, second)
        made = jnp.stack([self.at(pair, times[:, k]) for k in range(times.shape[1])], axis=1)
        return made[:, :, :height, :width]

    def features(self, first: Array, second: Array) -> Pair:
        """Two frames of any size [P, height, width, 3] -> what they have for any time."""
        sides = []
        for x in (first, second):
            down, right = (-size % self.cfg.pad_to for size in x.shape[1:3])
            around = ((0, 0), (0, down), (0, right), (0, 0))
            sides.append(jnp.pad(x.astype(jnp.float32), around))
        return Pair(*sides, tuple(self.contextnet(x) for x in sides))

    def at(self, pair: Pair, time: Array) -> Array:
        """A `Pair` and times [P] -> fp32 [P, H, W, 3], still padded."""
        flow, mask = self._flow(pair, time)
        near, far = warp(pair.first, flow[..., :2]), warp(pair.second, flow[..., 2:])
        sides: list[tuple[Array, ...]] = [()]
        part = flow
        for first, second in zip(*pair.contexts):
            part = reduce(part, 2) / 2
            sides.append((warp(first, part[..., :2]), warp(second, part[..., 2:])))
        images = jnp.concatenate((pair.first, pair.second, near, far, mask, flow), axis=-1)
        mended = self.unet(images, sides).astype(jnp.float32) * 2 - 1
        share = nn.sigmoid(mask)
        return jnp.clip(near * share + far * (1 - share) + mended, 0, 1)

    def _flow(self, pair: Pair, time: Array) -> tuple[Array, Array]:
        """Flows [P, H, W, 4] in pixels and the mask's logits [P, H, W, 1] at `time`."""
        clock = jnp.broadcast_to(
            time.astype(jnp.float32)[:, None, None, None], (*pair.first.shape[:3], 1)
        )
        flow = mask = None
        for block, scale in zip(self.block, self.cfg.scales):
            if flow is None:
                seen = (pair.first, pair.second, clock)
                flow, mask = block(jnp.concatenate(seen, axis=-1), None, scale)
                continue
            near, far = warp(pair.first, flow[..., :2]), warp(pair.second, flow[..., 2:])
            seen = (near, far, clock, mask)
            more = block(jnp.concatenate(seen, axis=-1), flow, scale)
            flow, mask = flow + more[0], mask + more[1]
        return flow, mask


class FlowBlock(nn.Module):
    """One refinement at 1/scale: [P, H, W, 7 or 8] and the flow so far -> more flow, more mask."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, seen: Array, flow: Array | None, scale: int) -> tuple[Array, Array]:
        parts = [reduce(seen, scale)]
        if flow is not None:
            parts.append(reduce(flow, scale) / scale)
        x = jnp.concatenate(parts, axis=-1).astype(self.dtype)
        x = ConvPReLU(self.width // 2, 2, self.dtype, name="conv0_0")(x)
        x = ConvPReLU(self.width, 2, self.dtype, name="conv0_1")(x)
        y = x
        for i in range(DEPTH):
            y = ConvPReLU(self.width, 1, self.dtype, name=f"convblock_{i}")(y)
        x = UpConv(FLOW + 1, FLOW + 1, 1, self.dtype, name="lastconv")(y + x)
        # The transposed convolution leaves half the reduced plane.
        x = enlarge(x.astype(jnp.float32), 2 * scale)
        return x[..., :FLOW] * (2 * scale), x[..., FLOW:]


class Context(nn.Module):
    """A frame [P, H, W, 3] -> its features at 1/2, 1/4, 1/8 and 1/16, widths doubling."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        x, found = x.astype(self.dtype), []
        for i in range(LEVELS):
            x = ConvPReLU(self.width * 2**i, 2, self.dtype, name=f"conv{i + 1}_conv1")(x)
            x = ConvPReLU(self.width * 2**i, 1, self.dtype, name=f"conv{i + 1}_conv2")(x)
            found.append(x)
        return found


def check_config(cfg: RefinedRIFEConfig) -> None:
    """Raise ValueError unless `cfg` describes a network that can run."""
    if not cfg.widths or len(cfg.widths) != len(cfg.scales):
        raise ValueError(
            f"RefinedRIFEConfig needs one scale for each width; "
            f"got {len(cfg.widths)} widths and {len(cfg.scales)} scales"
        )
    if any(scale < 1 or scale & (scale - 1) for scale in cfg.scales):
        raise ValueError(f"RefinedRIFEConfig.scales must be powers of two; got {cfg.scales}")
    unit = max(4 * max(cfg.scales), 2**LEVELS)
    if cfg.pad_to % unit:
        raise ValueError(
            f"RefinedRIFEConfig.pad_to must be a multiple of {unit}, which the coarsest block and "
            f"the context network need; got {cfg.pad_to}"
        )
    if any(width % 2 for width in cfg.widths):
        raise ValueError(f"RefinedRIFEConfig.widths must be even; got {cfg.widths}")
