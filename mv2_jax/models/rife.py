"""RIFE 4.25: frame interpolation at any time by intermediate flow (arXiv 2011.06294).

The network is that of hzwer/Practical-RIFE, version 4.25: a small convolutional head gives every
frame four feature channels; five flow blocks, from coarse to fine, refine two flows (from the
wanted time to each neighbour) and a blending mask; the answer is the blend of the two neighbours
warped by the last flows.

The public code brings every block's output to full size and back down for the next block. Here
a block's output stays at its own size and is read only where the next block looks: a bilinear
reduction by s reads the middle 2 x 2 of s x s pixels, so the second and third blocks need a
sixteenth and a quarter of the warped pixels. The result is the same up to rounding.

Letters: P pairs of frames, K times between them, H and W the padded plane, h and w a reduced one.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from mv2_jax.config import RIFEConfig
from mv2_jax.nn.bilinear import enlarge, enlarge_at, middle, reduce
from mv2_jax.nn.layers import Conv, Declared
from mv2_jax.nn.warp import pixel_grid, sample

HEAD_WIDTH = 16
FEATURES = 4  # channels of the head's output
STATE = 8  # channels that one flow block hands to the next, beside flow and mask
FLOW = 4  # (x, y) towards the first frame, (x, y) towards the second

_STRIPS, _LARGE = 8, 2**22  # horizontal strips that planes with so many coordinates are warped in

Flows = list[tuple[Array, int]]  # what each block added, [P*K, H/s, W/s, 4] in pixels, and its s


class RIFE(nn.Module):
    """Frames between two frames.

    `features` makes what a frame contributes whatever its neighbour and the time, so that a clip's
    frames pass through the head once; `between` does the rest; `__call__` joins them. Frames are in
    [0, 1]. `dtype` is that of the convolutions; flows, warps and the blend are fp32.

    Raises:
        ValueError: a config that `check_config` refuses.
    """

    cfg: RIFEConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        check_config(self.cfg)
        self.encode = Head(self.dtype)
        last = len(self.cfg.widths) - 1
        for i, width in enumerate(self.cfg.widths):
            # Nothing follows the last block, so it hands on no state.
            outputs = FLOW + 1 + (STATE if i < last else 0)
            setattr(self, f"block{i}", FlowBlock(width, outputs, self.dtype))

    def __call__(self, first: Array, second: Array, times: Array) -> Array:
        """Two frames of any size [P, height, width, 3], times [P, K] in (0, 1), 0 the first's.

        Returns:
            fp32 [P, K, height, width, 3].
        """
        height, width = first.shape[1:3]
        out = self.between(self.features(first), self.features(second), times)
        return out[:, :, :height, :width]

    def features(self, frames: Array) -> Array:
        """[P, height, width, 3] -> fp32 [P, H, W, 7]: the frame, padded, and its features."""
        height, width = frames.shape[1:3]
        # Black below and to the right, as the public code pads: borders are part of the parity.
        pad_h, pad_w = -height % self.cfg.pad_to, -width % self.cfg.pad_to
        padded = jnp.pad(frames.astype(jnp.float32), ((0, 0), (0, pad_h), (0, pad_w), (0, 0)))
        return jnp.concatenate((padded, self.encode(padded).astype(jnp.float32)), axis=-1)

    def between(self, first: Array, second: Array, times: Array) -> Array:
        """Two `features` [P, H, W, 7] and times [P, K] -> fp32 [P, K, H, W, 3]."""
        pairs, count = times.shape
        sources = (first, second)
        clock = times.astype(jnp.float32).reshape(pairs * count, 1, 1, 1)
        flows: Flows = []
        carried: list[Array] = []
        mask = state = None
        for i, scale in enumerate(self.cfg.scales):
            if flows:
                seen = [_warped(x, flows, side, scale, count) for side, x in enumerate(sources)]
                ratio = self.cfg.scales[i - 1] // scale
                flow = sum(enlarge(part, own // scale) for part, own in flows) / scale
                carried = [enlarge(mask, ratio), enlarge(state, ratio), flow]
            else:
                seen = [jnp.repeat(reduce(x, scale), count, axis=0) for x in sources]
            images, features = zip(*((x[..., :3], x[..., 3:]) for x in seen))
            now = jnp.broadcast_to(clock, (*seen[0].shape[:3], 1))
            out = getattr(self, f"block{i}")(
                jnp.concatenate((*images, *features, now, *carried), axis=-1)
            )
            flow, mask, state = jnp.split(out, (FLOW, FLOW + 1), axis=-1)
            flows.append((flow * scale, scale))
        share = nn.sigmoid(enlarge(mask, self.cfg.scales[-1]))
        near, far = (_warped(x[..., :3], flows, side, 1, count) for side, x in enumerate(sources))
        return (near * share + far * (1 - share)).reshape(pairs, count, *first.shape[1:3], 3)


class Head(nn.Module):
    """Four feature channels of a frame: [B, H, W, 3] -> [B, H, W, 4]."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = _leaky(_conv(HEAD_WIDTH, "cnn0", self.dtype, stride=2)(x))
        x = _leaky(_conv(HEAD_WIDTH, "cnn1", self.dtype)(x))
        x = _leaky(_conv(HEAD_WIDTH, "cnn2", self.dtype)(x))
        return UpConv(FEATURES, FEATURES, 1, self.dtype, name="cnn3")(x)


class FlowBlock(nn.Module):
    """One refinement: [B, h, w, C] -> [B, h, w, outputs] fp32 (4 flow, 1 mask, 8 state).

    The stored last kernel always has all 13 outputs; the last block of the network leaves its
    state's part unused, and computes only the five that matter.
    """

    width: int
    outputs: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = _leaky(_conv(self.width // 2, "conv0_0_0", self.dtype, stride=2)(x))
        x = _leaky(_conv(self.width, "conv0_1_0", self.dtype, stride=2)(x))
        for i in range(8):
            x = ResConv(self.width, self.dtype, name=f"convblock_{i}")(x)
        stored = FLOW + 1 + STATE
        x = UpConv(stored, self.outputs, 2, self.dtype, name="lastconv_0")(x)
        return x.astype(jnp.float32)


class ResConv(Declared, nn.Module):
    """leaky(x + beta * conv(x)), the residual layer of a flow block."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        beta = self.param("beta", nn.initializers.ones, (self.width,))
        y = _conv(self.width, "conv", self.dtype)(x)
        return _leaky(y * beta.astype(self.dtype)[None, None, None] + x)


class UpConv(Declared, nn.Module):
    """Transposed convolution of side 4 and stride 2, then a pixel shuffle by `shuffle`.

    [B, h, w, C] -> [B, 2*shuffle*h, 2*shuffle*w, used]. The kernel is [4, 4, C, stored *
    shuffle**2], for a plain convolution over the dilated input, its outputs in torch's order; of
    the `stored` values a pixel, the first `used` are computed.

    Output row 2i + a reads input rows i - 1 + a and i + a only, so a 2x2 convolution with all four
    phases as channels does it without multiplying the zeros of a dilated input: on CPU 3 to 5 times
    faster than XLA's transposed convolution on planes of 32 and more.
    """

    stored: int
    used: int
    shuffle: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        r, used = self.shuffle, self.used
        shape = (4, 4, channels, self.stored * r * r)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:]).astype(self.dtype)
        kernel = kernel.reshape(2, 2, 2, 2, channels, self.stored, r, r)[:, :, :, :, :, :used]
        bias = bias.reshape(self.stored, r, r)[:used].transpose(1, 2, 0)
        # (tap, phase) of rows, (tap, phase) of columns, C, value, r, r: the phases go to the end.
        kernel = kernel.transpose(0, 2, 4, 1, 3, 6, 7, 5).reshape(2, 2, channels, -1)
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel,
            window_strides=(1, 1),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ).reshape(batch, height + 1, width + 1, 2, 2, r, r, used)
        y = [
            jnp.stack([y[:, a : a + height, b : b + width, a, b] for b in (0, 1)], axis=4)
            for a in (0, 1)
        ]
        y = jnp.stack(y, axis=2).transpose(0, 1, 2, 4, 3, 5, 6, 7)  # B, h, a, r, w, b, r, value
        y = y + bias[None, None, None, :, None, None]
        return y.reshape(batch, 2 * r * height, 2 * r * width, used)


def check_config(cfg: RIFEConfig) -> None:
    """Raise ValueError unless `cfg` describes a network that can run."""
    if not cfg.widths or len(cfg.widths) != len(cfg.scales):
        raise ValueError(
            f"RIFEConfig needs one scale for each width; "
            f"got {len(cfg.widths)} widths and {len(cfg.scales)} scales"
        )
    powers = all(s >= 1 and s & (s - 1) == 0 for s in cfg.scales)
    if not powers or list(cfg.scales) != sorted(cfg.scales, reverse=True):
        raise ValueError(f"RIFEConfig.scales must be falling powers of two; got {cfg.scales}")
    if cfg.pad_to % (4 * cfg.scales[0]):
        raise ValueError(
            f"RIFEConfig.pad_to must be a multiple of 4 x the first scale, "
            f"{4 * cfg.scales[0]}; got {cfg.pad_to}"
        )
    if any(width % 2 for width in cfg.widths):
        raise ValueError(f"RIFEConfig.widths must be even; got {cfg.widths}")


def _warped(source: Array, flows: Flows, side: int, scale: int, count: int) -> Array:
    """`source` [P, H, W, C] warped by the sum of `flows`, then reduced: [P*K, H/scale, W/scale, C].

    Only the pixels that the reduction reads are warped. `side` says which half of a flow is meant.
    """
    pairs, height, width, channels = source.shape
    inside = middle(scale)
    moved = sum(
        enlarge_at(part[..., 2 * side : 2 * side + 2], own, _each_cell(own, scale))
        for part, own in flows
    )
    grid = pixel_grid(height, width)[_each_cell(height, scale)][:, _each_cell(width, scale)]
    points = (grid[None] + moved).reshape(pairs, count, *grid.shape)
    n, wide = len(inside), width // scale

    def reduced(points: Array) -> Array:
        rows = points.shape[2] // n
        cells = (pairs * count, rows, n, wide, n, channels)
        return sample(source, points, dense=scale == 1).reshape(cells).mean(axis=(2, 4))

    parts = _STRIPS if points.size > _LARGE and (height // scale) % _STRIPS == 0 else 1
    if parts == 1:
        return reduced(points)
    # What is sampled of a plane of 4K takes gigabytes before it is reduced: a strip a time.
    strips = points.reshape(pairs, count, parts, -1, *points.shape[3:])
    made = lax.map(reduced, jnp.moveaxis(strips, 2, 0))
    return jnp.moveaxis(made, 0, 1).reshape(pairs * count, height // scale, wide, channels)


def _each_cell(size: int, scale: int) -> np.ndarray:
    """The positions in [0, size) that a reduction by `scale` reads."""
    return (np.arange(0, size, scale)[:, None] + np.array(middle(scale))[None]).reshape(-1)


def _conv(width: int, name: str, dtype: jnp.dtype, stride: int = 1) -> Conv:
    return Conv(width, (3, 3), (stride, stride), padding=1, dtype=dtype, name=name)


def _leaky(x: Array) -> Array:
    return jnp.maximum(x, 0.2 * x)
