"""EMA-VFI: frames between two frames from one pass of inter-frame attention (arXiv 2303.00440).

The paper's light interpolator (MagicVideo-V2, arXiv 2401.04468). The network is that of
MCG-NJU/EMA-VFI: the backbone of `models.ema_features`, two heads that turn its motion into flows
and a blending mask from coarse to fine, and a U-Net that mends what warping leaves.

Time enters only the heads, where it weighs each frame's motion, so the backbone runs once for all
the times between two frames.

Letters: P pairs of frames, K times, H and W the padded plane, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from mv2_jax.config import EMAVFIConfig
from mv2_jax.models.ema_features import CONV_STAGES, HEAD_WIDTH, MotionFormer, margins
from mv2_jax.models.rife import UpConv
from mv2_jax.nn.bilinear import enlarge, reduce
from mv2_jax.nn.layers import Dtype, conv
from mv2_jax.nn.prelu import ConvPReLU, PReLU
from mv2_jax.nn.warp import warp

FLOW = 4  # (x, y) towards the first frame, (x, y) towards the second
HEAD_SCALES = (16, 8)  # the plane whose motion each head reads, as a divisor of the frame's
HEAD_OUTPUT = 4  # of its motion's plane, a head's own is this many times as large


class Pair(NamedTuple):
    """What the backbone found of P pairs: the padded frames [P, H, W, 3], and its two lists."""

    first: Array
    second: Array
    appearance: list[Array]
    motion: list[Array]


class EMAVFI(nn.Module):
    """Frames between two frames, all in [0, 1].

    `features` makes what a pair contributes whatever the time, `at` a frame of it; `__call__` joins
    them. `dtype` is that of convolutions and attention; flows, warps and the blend are fp32.

    Raises:
        ValueError: a config that `check_config` refuses.
    """

    cfg: EMAVFIConfig
    dtype: Dtype = jnp.float32

    def setup(self):
        check_config(self.cfg)
        self.feature_bone = MotionFormer(self.cfg, self.dtype)
        self.block = [FlowHead(4 * self.cfg.width, s, self.dtype) for s in HEAD_SCALES]
        self.unet = Refiner(2 * self.cfg.width, self.dtype)

    def __call__(self, first: Array, second: Array, times: Array) -> Array:
        """Two frames of any size [P, height, width, 3], times [P, K] in (0, 1), 0 the first's.

        Returns:
            fp32 [P, K, height, width, 3].
        """
        height, width = first.shape[1:3]
        pair = self.features(first, second)
        made = [self.at(pair, times[:, k]) for k in range(times.shape[1])]
        return unpad(jnp.stack(made, axis=1), height, width, self.cfg)

    def features(self, first: Array, second: Array) -> Pair:
        """Two frames of any size [P, height, width, 3] -> what they have for any time."""
        first, second = (_pad(x.astype(jnp.float32), self.cfg) for x in (first, second))
        return Pair(first, second, *self.feature_bone(first, second))

    def at(self, pair: Pair, time: Array) -> Array:
        """A `Pair` and times [P] -> fp32 [P, H, W, 3], still padded (see `unpad`)."""
        flow, mask = self._flow(pair, time)
        near, far = _warped(pair, flow)
        sides = _warped_features(pair.appearance, flow)
        images = jnp.concatenate((pair.first, pair.second, near, far, mask, flow), axis=-1)
        mended = self.unet(images, sides).astype(jnp.float32) * 2 - 1
        share = nn.sigmoid(mask)
        return jnp.clip(near * share + far * (1 - share) + mended, 0, 1)

    def _flow(self, pair: Pair, time: Array) -> tuple[Array, Array]:
        """Flows [P, H, W, 4] in pixels and the mask's logits [P, H, W, 1] at `time`."""
        time = time.astype(self.dtype)[:, None, None, None]
        flow = mask = None
        for i, head in enumerate(self.block):
            (motion_0, motion_1), (look_0, look_1) = (
                jnp.split(x[-1 - i], 2) for x in (pair.motion, pair.appearance)
            )
            seen = (time * motion_0, (1 - time) * motion_1, look_0, look_1)
            images = [pair.first, pair.second]
            if flow is not None:
                images += [*_warped(pair, flow), mask]
            more = head(jnp.concatenate(seen, axis=-1), jnp.concatenate(images, axis=-1), flow)
            flow, mask = more if flow is None else (flow + more[0], mask + more[1])
        return flow, mask


class FlowHead(nn.Module):
    """Motion at 1/scale of a frame, the frame and the flow so far -> more flow, more mask.

    [P, H/scale, W/scale, C], [P, H, W, 6 or 13], None or [P, H, W, 4] -> fp32 [P, H, W, 4] in
    pixels and [P, H, W, 1].
    """

    width: int
    scale: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, seen: Array, images: Array, flow: Array | None) -> tuple[Array, Array]:
        scale = self.scale // HEAD_OUTPUT
        parts = [_shuffle(_shuffle(seen)), reduce(images, scale)]
        if flow is not None:
            parts.append(reduce(flow, scale) / scale)
        x = jnp.concatenate([part.astype(self.dtype) for part in parts], axis=-1)
        x = ConvPReLU(self.width, dtype=self.dtype, name="conv_0")(x)
        x = ConvPReLU(self.width, dtype=self.dtype, name="conv_1")(x)
        x = ConvPReLU(FLOW + 1, dtype=self.dtype, name="conv_2")(x)
        x = enlarge(x.astype(jnp.float32), scale)
        return x[..., :FLOW] * scale, x[..., FLOW:]


class Refiner(nn.Module):
    """The U-Net behind the warps: what to add to the blended frame, in [0, 1] (1/2 adds nothing).

    Images [P, H, W, 17] and both sides' warped features at 1, 1/2 ... 1/16 -> [P, H, W, 3].
    """

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array, sides: list[tuple[Array, Array]]) -> Array:
        x, skips = images, []
        for i, pair in enumerate(sides[:-1]):
            x = jnp.concatenate([part.astype(self.dtype) for part in (x, *pair)], axis=-1)
            width = self.width * 2 ** (i + 1)
            x = ConvPReLU(width, 2, self.dtype, name=f"down{i}_conv1")(x)
            x = ConvPReLU(width, 1, self.dtype, name=f"down{i}_conv2")(x)
            skips.append(x)
        beside: tuple[Array, ...] = sides[-1]
        skips.pop()
        for i in range(len(sides) - 1):
            x = jnp.concatenate([part.astype(self.dtype) for part in (x, *beside)], axis=-1)
            width = self.width * 2 ** (len(sides) - 2 - i)
            x = PReLU(name=f"up{i}_1")(UpConv(width, width, 1, self.dtype, name=f"up{i}_0")(x))
            beside = (skips.pop(),) if skips else ()
        return nn.sigmoid(conv(3, name="conv", dtype=self.dtype)(x))


def check_config(cfg: EMAVFIConfig) -> None:
    """Raise ValueError unless `cfg` describes a network that can run."""
    if len(cfg.depths) != CONV_STAGES + 2 or min(cfg.depths) < 1:
        raise ValueError(f"EMAVFIConfig.depths wants five numbers from 1 up; got {cfg.depths}")
    for depth, width in zip(cfg.depths[CONV_STAGES:], (8 * cfg.width, 16 * cfg.width)):
        if width % HEAD_WIDTH or width // depth * depth != width:
            raise ValueError(
                f"EMAVFIConfig.width {cfg.width} makes a stage {width} wide: it must be a multiple "
                f"of {HEAD_WIDTH} and of the stage's depth, {depth}"
            )
        if width // depth % (width // HEAD_WIDTH):
            raise ValueError(
                f"EMAVFIConfig.depths: {depth} blocks leave a motion width of {width // depth}, "
                f"which {width // HEAD_WIDTH} heads do not share evenly"
            )
    if cfg.pad_to % 16:
        raise ValueError(f"EMAVFIConfig.pad_to must be a multiple of 16; got {cfg.pad_to}")


def unpad(frames: Array, height: int, width: int, cfg: EMAVFIConfig) -> Array:
    """Cuts the frames [..., H, W, 3] of `at` back to [..., height, width, 3]."""
    top, left = (margins(n, cfg.pad_to)[0] for n in (height, width))
    return frames[..., top : top + height, left : left + width, :]


def _pad(frames: Array, cfg: EMAVFIConfig) -> Array:
    """Repeats the border all around, the picture in the middle, as the public code's padder."""
    around = (margins(n, cfg.pad_to) for n in frames.shape[1:3])
    return jnp.pad(frames, ((0, 0), *around, (0, 0)), mode="edge")


def _warped(pair: Pair, flow: Array) -> tuple[Array, Array]:
    return warp(pair.first, flow[..., :2]), warp(pair.second, flow[..., 2:])


def _warped_features(planes: list[Array], flow: Array) -> list[tuple[Array, Array]]:
    """Both sides' planes warped by the flow at their own scale."""
    out = []
    for plane in planes:
        first, second = jnp.split(plane, 2)
        out.append((warp(first, flow[..., :2]), warp(second, flow[..., 2:])))
        if len(out) < len(planes):
            flow = reduce(flow, 2) / 2
    return out


def _shuffle(x: Array) -> Array:
    """torch's PixelShuffle(2): [B, h, w, 4 C] -> [B, 2 h, 2 w, C], the channel slowest."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, channels // 4, 2, 2)
    return jax.lax.transpose(x, (0, 1, 4, 2, 5, 3)).reshape(batch, 2 * height, 2 * width, -1)
