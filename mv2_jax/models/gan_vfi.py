"""The paper's frame interpolator: a VQ autoencoder that looks at both neighbours (stage VFI).

MagicVideo-V2 (arXiv 2401.04468) names its parts: a GAN-trained VQ-VAE, an enhanced deformable
separable convolution head (EDSC, arXiv 2006.08070), and a light pretrained interpolator for
stability. Such an autoencoder is known as VQ-FIGAN (LDMVFI, arXiv 2303.09508; public code
danier97/LDMVFI), whose layers and sizes these are. VQ-FIGAN encodes the frame it shall make, which
LDMVFI's diffusion model guesses as a latent. Here, and where the paper is silent the choice is this
project's:

- What is encoded is the light model's frame, so that the result follows it.
- With `steady` that frame's features join the neighbours' in the cross-attention, and the frame
  itself joins the sum, weighed pixel by pixel. A fresh network gives exactly the light model's
  frame, and training corrects it.
- Time enters as an embedding, as in diffusion networks, beside being in the light model's frame.
- EDSC's offsets and kernels may be predicted on a smaller plane (`nn.edsc` enlarges them tap by
  tap). What sharpness hangs on, the added frame and its weight, comes at full size by pixel
  shuffle.

Letters: P pairs of frames, H and W the padded plane, C channels. Frames are in [-1, 1].
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from mv2_jax.config import GANVFIConfig
from mv2_jax.models.gan_heads import Heads, Synthesis
from mv2_jax.models.vq import Quantised, Quantiser
from mv2_jax.nn.edsc import synthesise
from mv2_jax.nn.layers import Dtype, EmbeddingMLP, GroupNorm, conv, sinusoid, space_to_depth
from mv2_jax.nn.maxvit import MaxAttention
from mv2_jax.nn.resnet import Downsample, ResnetBlock, Upsample

EPS = 1e-6  # every group norm, as VQ-FIGAN's
CLOCK = 1000.0  # times in [0, 1] meet the sinusoids as diffusion's steps do


class Neighbours(NamedTuple):
    """Both frames, padded, fp32 [P, H, W, 3], and their features side by side, level by level."""

    first: Array
    second: Array
    levels: list[Array]


class GANVFI(nn.Module):
    """Frames between two frames.

    `neighbours` makes what a pair contributes whatever the time, `frame` a frame of it; `__call__`
    joins them. `dtype` is that of convolutions and attention; codes, reads and sums are fp32.

    Raises:
        ValueError: a config that `check_config` refuses.
    """

    cfg: GANVFIConfig
    dtype: Dtype = jnp.float32

    def setup(self):
        cfg = self.cfg
        check_config(cfg)
        self.encoder = Encoder(cfg, self.dtype)
        self.quant_conv = conv(cfg.code_width, 1, name="quant_conv", dtype=self.dtype)
        self.quantize = Quantiser(cfg.codes, cfg.code_width)
        self.post_quant_conv = conv(cfg.z_channels, 1, name="post_quant_conv", dtype=self.dtype)
        self.decoder = Decoder(cfg, self.dtype)

    def __call__(
        self, first: Array, second: Array, guess: Array, time: Array
    ) -> tuple[Array, Quantised]:
        """Two frames and the light model's between them [P, height, width, 3], times [P].

        Returns:
            The frame, fp32 [P, height, width, 3], not clipped, and the codes.
        """
        height, width = first.shape[1:3]
        out, codes = self.frame(self.neighbours(first, second), guess, time)
        return out[:, :height, :width], codes

    def neighbours(self, first: Array, second: Array) -> Neighbours:
        """Two frames of any size [P, height, width, 3] -> what they have for any time."""
        first, second = (self._padded(x) for x in (first, second))
        # One after the other in one batch: convolutions like it better.
        levels = self.encoder.levels(jnp.concatenate((first, second)))
        beside = [jnp.concatenate(jnp.split(x, 2), axis=-1) for x in levels]
        return Neighbours(first, second, beside)

    def frame(self, around: Neighbours, guess: Array, time: Array) -> tuple[Array, Quantised]:
        """The frame at `time` [P], still padded, from the light model's [P, height, width, 3]."""
        guess = self._padded(guess)
        levels = self.encoder.levels(guess)
        codes = self.quantize(self.quant_conv(self.encoder.latent(levels[-1])))
        z = self.post_quant_conv(codes.values.astype(self.dtype))
        context = around.levels
        if self.cfg.steady:
            context = [jnp.concatenate(pair, axis=-1) for pair in zip(context, levels)]
        heads = self.decoder(z, context, time if self.cfg.time_width else None)
        public = self.cfg.public_kernel
        out = heads.residual
        for image, taps in zip((around.first, around.second), (heads.first, heads.second)):
            out = out + synthesise(image, taps, original=public)
        if self.cfg.steady:
            out = out + (1 + heads.trust) * guess
        return out, codes

    def _padded(self, frames: Array) -> Array:
        """Mirrors the frame below and to the right, as VQ-FIGAN pads."""
        for axis in (1, 2):
            size = frames.shape[axis]
            pad = [(0, 0)] * 4
            pad[axis] = (0, -size % self.cfg.pad_to)
            frames = jnp.pad(frames, pad, mode="reflect" if size > 1 else "edge")
        return frames.astype(jnp.float32)


class Encoder(nn.Module):
    """A frame -> its features level by level, and from the last of them a latent."""

    cfg: GANVFIConfig
    dtype: Dtype = jnp.float32

    def setup(self):
        cfg = self.cfg
        widths = [cfg.width * m for m in cfg.multipliers]
        self.conv_in = conv(cfg.width, name="conv_in", dtype=self.dtype)
        self.block = [_resnet(width, cfg, self.dtype) for width in widths]
        self.downsample = [Downsample(width, (0, 1), self.dtype) for width in widths]
        self.mid = Middle(cfg, self.dtype)
        self.norm_out = GroupNorm(cfg.norm_groups, EPS)
        self.conv_out = conv(cfg.z_channels, name="conv_out", dtype=self.dtype)

    def levels(self, frames: Array) -> list[Array]:
        """[B, H, W, 3] -> the planes after each halving, the finest first."""
        x = self.conv_in(space_to_depth(frames.astype(self.dtype), self.cfg.patch_size))
        found = []
        for block, downsample in zip(self.block, self.downsample):
            x = downsample(block(x))
            found.append(x)
        return found

    def latent(self, x: Array) -> Array:
        """The last of `levels` -> [B, h, w, z_channels]."""
        return self.conv_out(nn.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """A latent, the context's features level by level, and perhaps times [P] -> `Synthesis`."""

    cfg: GANVFIConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, z: Array, context: list[Array], time: Array | None) -> Synthesis:
        cfg = self.cfg
        clock = None
        if time is not None:
            clock = sinusoid(time.astype(jnp.float32) * CLOCK, cfg.time_width)
            clock = EmbeddingMLP(cfg.time_width, self.dtype, name="time_embedding")(clock)
        x = conv(cfg.width * cfg.multipliers[-1], name="conv_in", dtype=self.dtype)(z)
        x = Middle(cfg, self.dtype, name="mid")(x, clock)
        for i, multiplier in reversed(list(enumerate(cfg.multipliers))):
            width = cfg.width * multiplier
            x = _resnet(width, cfg, self.dtype, name=f"block_{i}")(x, clock)
            look = MaxAttention(
                width // cfg.head_width,
                cfg.window,
                cfg.batch_norm,
                self.dtype,
                name=f"cross_attn_{i}",
            )
            x = look(x, context[i].astype(self.dtype))
            if i or not cfg.half_heads:
                x = Upsample(width, self.dtype, name=f"upsample_{i}")(x)
        x = nn.silu(GroupNorm(cfg.norm_groups, EPS, name="norm_out")(x))
        x = conv(x.shape[-1], name="conv_out", dtype=self.dtype)(x)
        return Heads(cfg, self.dtype, name="heads")(x)


class Middle(nn.Module):
    """Resnet, attention over the plane, resnet: [B, h, w, C] -> [B, h, w, C]."""

    cfg: GANVFIConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, clock: Array | None = None) -> Array:
        width = x.shape[-1]
        x = _resnet(width, self.cfg, self.dtype, name="block_1")(x, clock)
        x = MaxAttention(1, self.cfg.window, dtype=self.dtype, name="attn_1")(x)
        return _resnet(width, self.cfg, self.dtype, name="block_2")(x, clock)


def check_config(cfg: GANVFIConfig) -> None:
    """Raise ValueError unless `cfg` describes a network that can run."""
    widths = [cfg.width * m for m in cfg.multipliers]
    if not widths:
        raise ValueError("GANVFIConfig.multipliers is empty: the network needs a level")
    for name, unit in (("norm_groups", cfg.norm_groups), ("head_width", cfg.head_width)):
        if bad := [width for width in widths if width % unit]:
            raise ValueError(
                f"GANVFIConfig: a level of {bad[0]} channels (width {cfg.width} times its "
                f"multiplier) does not divide by {name}, {unit}"
            )
    if cfg.taps % 2 == 0:
        raise ValueError(
            f"GANVFIConfig.taps must be odd, so that one is the centre; got {cfg.taps}"
        )
    if cfg.public_kernel and cfg.head_scale != 1:
        raise ValueError(
            "GANVFIConfig.public_kernel belongs to weights that predict at full size: it needs "
            f"half_heads False and patch_size 1; got {cfg.half_heads} and {cfg.patch_size}"
        )


def _resnet(width: int, cfg: GANVFIConfig, dtype: Dtype, name: str | None = None) -> ResnetBlock:
    return ResnetBlock(width, cfg.norm_groups, EPS, dtype, zero=False, name=name)
