"""EMA-VFI's backbone: what two frames show and how they move, found by one attention.

arXiv 2303.00440, section 3; public code MCG-NJU/EMA-VFI. Three convolutional stages see each frame
alone. Two attention stages at 1/8 and 1/16 then let each frame's 7x7 windows look into the other
frame's: applied to that frame's features the attention gives appearance, applied to the tokens'
coordinates it gives where each token went, which is motion. No time enters, so one run serves all
the times between two frames.

Letters: P pairs of frames, h and w a stage's plane, C channels, L tokens of a window, N heads.
Planes hold 2P frames: all the first ones, then all the second ones.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from mv2_jax.config import EMAVFIConfig
from mv2_jax.nn.layers import Dtype, LayerNorm, conv, dense
from mv2_jax.nn.prelu import ConvPReLU
from mv2_jax.nn.windows import attend_biased, blocks, unblocks

CONV_STAGES = 3
HEAD_WIDTH = 32
MLP_RATIO = 4
APART = -100.0  # added to the score of two tokens that must not meet, as the public code does


class MotionFormer(nn.Module):
    """Frames of a pair -> appearance at five scales, motion at the two coarsest.

    Two [P, H, W, 3] in [0, 1], sides multiples of 16 -> (appearance, motion): appearance is five
    planes [2P, H / s, W / s, width * s] for s = 1, 2, 4, 8, 16; motion two, shaped as its last two.
    """

    cfg: EMAVFIConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, first: Array, second: Array) -> tuple[list[Array], list[Array]]:
        cfg = self.cfg
        x = jnp.concatenate((first, second)).astype(self.dtype)
        appearance, motion = [], []
        for i, depth in enumerate(cfg.depths):
            stage, width = i + 1, cfg.width * 2**i
            if i < CONV_STAGES:
                if i:
                    x = ConvPReLU(width, 2, self.dtype, name=f"patch_embed{stage}")(x)
                for j in range(depth):
                    x = ConvPReLU(width, 1, self.dtype, name=f"block{stage}_{j}")(x)
            else:
                if i == CONV_STAGES:
                    x = CrossScale(cfg.width, width, self.dtype, name=f"patch_embed{stage}")(
                        appearance
                    )
                else:
                    x = Overlapping(width, self.dtype, name=f"patch_embed{stage}")(x)
                moves = []
                for j in range(depth):
                    # Every second block looks through windows moved by half a window.
                    shift = cfg.window // 2 if j % 2 else 0
                    block = InterFrameBlock(width // depth, cfg.window, shift, self.dtype,
                                            name=f"block{stage}_{j}")  # fmt: skip
                    x, move = block(x)
                    moves.append(move)
                x = LayerNorm(1e-6, name=f"norm{stage}")(x)
                motion.append(jnp.concatenate(moves, axis=-1))
            appearance.append(x)
        return appearance, motion


class CrossScale(nn.Module):
    """Joins the convolutional stages' planes at 1/8: 7 dilated, strided convolutions side by side.

    The coarser a plane, the fewer: one of the plane at 1/4, two of that at 1/2, four of the whole.
    """

    base: int
    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, planes: list[Array]) -> Array:
        seen = []
        for i, plane in enumerate(reversed(planes)):
            for dilation in range(1, 2**i + 1):
                layer = nn.Conv(
                    self.base,
                    (3, 3),
                    2 ** (i + 1),
                    dilation,  # padding
                    kernel_dilation=dilation,
                    dtype=self.dtype,
                    name=f"layers_{len(seen)}",
                )
                seen.append(layer(plane))
        x = conv(self.width, 1, name="proj", dtype=self.dtype)(jnp.concatenate(seen, axis=-1))
        return LayerNorm(1e-5, name="norm")(x)


class Overlapping(nn.Module):
    """A strided convolution, then layer norm: [B, h, w, C] -> [B, h/2, w/2, width]."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = conv(self.width, 3, 2, name="proj", dtype=self.dtype)(x)
        return LayerNorm(1e-5, name="norm")(x)


class InterFrameBlock(nn.Module):
    """One transformer layer across the pair: x [2P, h, w, C] -> (x, motion [2P, h, w, motion]).

    The plane is padded to whole windows, centred, and tokens that lie on different sides of a
    border do not meet. As in the public code the attention's result is added to the normalised x.
    """

    motion: int
    window: int
    shift: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        height, width = x.shape[1:3]
        (top, bottom), (left, right) = (margins(n, self.window) for n in (height, width))
        tall, wide = height + top + bottom, width + left + right
        back = (self.shift, self.shift)

        def cut(plane: Array) -> Array:
            return jnp.pad(plane, ((0, 0), (top, bottom), (left, right), (0, 0)))

        def windows(plane: Array) -> Array:
            return blocks(jnp.roll(plane, (-self.shift, -self.shift), (1, 2)), self.window)

        def whole(rows: Array) -> Array:
            plane = jnp.roll(unblocks(rows, tall, wide, self.window), back, (1, 2))
            return plane[:, top : top + height, left : left + width]

        # Normalised after padding: the margins then hold the norm's bias, as in the public code.
        mine = windows(LayerNorm(1e-6, name="norm1")(cut(x)))
        places = windows(cut(jnp.asarray(coordinates(height, width))[None]))
        mask = window_mask(height, width, self.window, self.shift)
        seen, motion = InterFrameAttention(self.motion, self.dtype, name="attn")(mine, places, mask)
        x = whole(mine + seen)
        return x + Mlp(self.dtype, name="mlp")(LayerNorm(1e-6, name="norm2")(x)), whole(motion)


class InterFrameAttention(nn.Module):
    """Windows [R, L, C] over the same windows of the other frame, and over their coordinates.

    `places` are the tokens' coordinates in the windows of one plane [G, L, 2], `mask` [G, L, L].
    Gives what was seen [R, L, C] and motion [R, L, motion].
    """

    motion: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, places: Array, mask: np.ndarray | None) -> tuple[Array, Array]:
        rows, length, width = x.shape
        heads = width // HEAD_WIDTH
        other = jnp.concatenate((x[rows // 2 :], x[: rows // 2]))

        def split(y: Array) -> Array:
            return y.reshape(*y.shape[:-1], heads, -1)

        q = split(dense(width, name="q", dtype=self.dtype)(x))
        k, v = (split(dense(width, name=n, dtype=self.dtype)(other)) for n in ("k", "v"))
        places = dense(self.motion, name="cor_embed", dtype=self.dtype)(places.astype(self.dtype))
        here = jnp.tile(places, (rows // places.shape[0], 1, 1))
        bias = None if mask is None else jnp.asarray(mask)[:, None]
        out = attend_biased(q, k, jnp.concatenate((v, split(here)), axis=-1), bias)
        seen, there = out[..., :HEAD_WIDTH], out[..., HEAD_WIDTH:]
        motion = there.reshape(rows, length, self.motion) - here
        return (
            dense(width, name="proj", dtype=self.dtype)(seen.reshape(x.shape)),
            dense(self.motion, name="motion_proj", dtype=self.dtype)(motion),
        )


class Mlp(nn.Module):
    """Feed-forward with a depthwise 3x3 convolution inside: [B, h, w, C] -> [B, h, w, C]."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        inner = width * MLP_RATIO
        y = dense(inner, name="fc1", dtype=self.dtype)(x)
        y = nn.Conv(
            inner, (3, 3), padding=1, feature_group_count=inner, dtype=self.dtype, name="dwconv"
        )(y)
        return dense(width, name="fc2", dtype=self.dtype)(nn.gelu(y, approximate=False))


def margins(size: int, multiple: int) -> tuple[int, int]:
    """Padding before and after that centres `size` in the next multiple of `multiple`."""
    missing = -size % multiple
    return missing // 2, missing - missing // 2


def coordinates(height: int, width: int) -> np.ndarray:
    """(x, y) of each token, from -1 to 1 along each side: fp32 [height, width, 2]."""
    x = np.broadcast_to(np.linspace(-1, 1, width, dtype=np.float32)[None, :], (height, width))
    y = np.broadcast_to(np.linspace(-1, 1, height, dtype=np.float32)[:, None], (height, width))
    return np.stack((x, y), axis=-1)


def window_mask(height: int, width: int, window: int, shift: int) -> np.ndarray | None:
    """What to add to the scores of a plane's windows: fp32 [G, L, L], or None where nothing is.

    Tokens are kept apart that the shift rolled in from the far edge, and the padding from the
    rest. In a shifted block the public code takes the padding's mask as it was before the roll, so
    there some padding is seen after all; its weights know it so.
    """
    pads = [margins(n, window) for n in (height, width)]
    sizes = [n + sum(pad) for n, pad in zip((height, width), pads)]
    mask = None
    if shift:
        mask = _apart([(n - window, n - shift) for n in sizes], sizes, window)
    if any(sum(pad) for pad in pads):
        inside = [(pad[0], pad[0] + n) for n, pad in zip((height, width), pads)]
        padding = _apart(inside, sizes, window)
        mask = padding if mask is None else mask | padding
    return None if mask is None else np.where(mask, np.float32(APART), np.float32(0))


def _apart(cuts: list[tuple[int, int]], sizes: list[int], window: int) -> np.ndarray:
    """Which tokens of a window lie in different parts of a plane cut twice along each side."""
    rows, columns = (np.searchsorted(cut, np.arange(n), "right") for cut, n in zip(cuts, sizes))
    part = 3 * rows[:, None] + columns[None, :]
    part = part.reshape(sizes[0] // window, window, sizes[1] // window, window)
    part = part.transpose(0, 2, 1, 3).reshape(-1, window * window)
    return part[:, :, None] != part[:, None, :]
