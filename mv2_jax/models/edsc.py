"""EDSC as published: a frame between two, made by deformable separable kernels (arXiv 2006.08070).

The network of Xianhang/EDSC-pytorch, for its public weights: `EDSC_s` makes the middle frame,
`EDSC_m` any. The paper's GAN interpolator (`models.gan_vfi`) has taken its head from here. A U-Net
of heterogeneous convolutions sees both frames at once and ends on half the plane; small networks
bring kernels, offsets and masks to full size.

Letters: P pairs of frames, K times, H and W the padded plane, h and w a level's, C channels.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from mv2_jax.config import EDSCConfig
from mv2_jax.nn.edsc import Taps, synthesise
from mv2_jax.nn.layers import Dtype, conv

TAPS = 5
GROUPS = 4
PAD_TO = 32
HEAD_WIDTHS = (64, 32)


class EDSC(nn.Module):
    """Frames between two frames, all in [0, 1].

    The public weights were trained on pictures as OpenCV reads them, blue first; frames here have
    red first, and are turned round on the way in and out.
    """

    cfg: EDSCConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, first: Array, second: Array, times: Array) -> Array:
        """Two frames of any size [P, height, width, 3], times [P, K] in (0, 1), 0 the first's.

        Weights that know the middle alone give it whatever the times say.

        Returns:
            fp32 [P, K, height, width, 3], not clipped.
        """
        height, width = first.shape[1:3]
        around = ((0, 0), (0, -height % PAD_TO), (0, -width % PAD_TO), (0, 0))
        sides = [
            jnp.pad(x.astype(jnp.float32)[..., ::-1], around, mode="edge") for x in (first, second)
        ]
        seen = Body(self.cfg.widths, self.dtype, name="body")(jnp.concatenate(sides, axis=-1))
        heads = Heads(self.cfg.any_time, self.dtype, name="heads")
        made = []
        for k in range(times.shape[1]):
            taps, bias = heads(seen, times[:, k])
            total = bias
            for image, side in zip(sides, taps):
                total = total + synthesise(image, side, original=True)
            made.append(total[:, :height, :width, ::-1])
        return jnp.stack(made, axis=1)


class Body(nn.Module):
    """Both frames [P, H, W, 6] -> features [P, H/2, W/2, widths[1]]."""

    widths: tuple[int, ...]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        widths = self.widths
        x = nn.relu(conv(widths[0], name="conv1_0", dtype=self.dtype)(x.astype(self.dtype)))
        for j in (2, 4):
            x = nn.relu(HetConv(widths[0], self.dtype, name=f"conv1_{j}")(x))
        skips = []
        for i, width in enumerate(widths[1:], 2):
            x = self._three(width, f"conv{i}")(_halved(x))
            skips.append(x)
        x = _halved(x)
        for i in range(len(widths), 1, -1):
            width = widths[i - 1]
            x = _doubled(self._three(width, f"deconv{i}")(x))
            x = nn.relu(HetConv(width, self.dtype, name=f"upsample{i}_1")(x)) + skips.pop()
        return x

    def _three(self, width: int, name: str):
        def run(x: Array) -> Array:
            for j in (0, 2, 4):
                x = nn.relu(HetConv(width, self.dtype, name=f"{name}_{j}")(x))
            return x

        return run


class HetConv(nn.Module):
    """3x3 within groups of channels, 1x1 across them: [P, h, w, C] -> [P, h, w, features].

    What the 1x1 convolution sees within a group a third one takes away again, so each pair of
    channels meets in one kernel (arXiv 1903.04120, as EDSC computes it).
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layer = partial(nn.Conv, self.features, dtype=self.dtype)
        near = layer((3, 3), padding=1, feature_group_count=GROUPS, name="conv3x3")(x)
        across = layer((1, 1), name="conv1x1")(x)
        return near + across - layer((1, 1), feature_group_count=GROUPS, name="conv1x1_")(x)


class Heads(nn.Module):
    """Features on half the plane and times [P] -> both sides' `Taps` and what is added."""

    any_time: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, seen: Array, time: Array) -> tuple[list[Taps], Array]:
        sides = []
        for side, clock in ((1, time), (2, 1 - time)):
            x = seen
            if self.any_time:
                clock = clock.astype(seen.dtype)[:, None, None, None]
                plane = jnp.broadcast_to(clock, (*seen.shape[:3], 1))
                x = jnp.concatenate((seen, plane), axis=-1)
            sides.append(
                Taps(
                    rows=self._head(f"offset{side}x", TAPS**2)(x),
                    columns=self._head(f"offset{side}y", TAPS**2)(x),
                    vertical=self._head(f"vertical{side}", TAPS)(x),
                    horizontal=self._head(f"horizontal{side}", TAPS)(x),
                    mask=nn.sigmoid(self._head(f"mask{side}", TAPS**2)(x)),
                )
            )
        return sides, self._head("bias", 3)(seen)

    def _head(self, name: str, outputs: int) -> Head:
        return Head(outputs, self.dtype, name=name)


class Head(nn.Module):
    """[P, h, w, C] -> fp32 [P, 2 h, 2 w, outputs]."""

    outputs: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, width in enumerate((*HEAD_WIDTHS, self.outputs)):
            x = nn.relu(conv(width, name=f"conv_{2 * i}", dtype=self.dtype)(x))
        x = conv(self.outputs, name="conv_7", dtype=self.dtype)(_doubled(x))
        return x.astype(jnp.float32)


def _halved(x: Array) -> Array:
    return nn.avg_pool(x, (2, 2), (2, 2))


def _doubled(x: Array) -> Array:
    """Bilinear enlargement by two, the outer pixels' centres kept (torch's align_corners=True)."""
    for axis in (1, 2):
        size = x.shape[axis]
        at = np.linspace(0, size - 1, 2 * size)
        low = np.minimum(at.astype(int), max(size - 2, 0))
        share = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(4)])
        high = np.minimum(low + 1, size - 1)
        share = jnp.asarray(share, x.dtype)
        x = jnp.take(x, low, axis=axis) * (1 - share) + jnp.take(x, high, axis=axis) * share
    return x
