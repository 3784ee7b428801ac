"""AutoencoderKL: pictures to latents and back (Latent Diffusion, arXiv 2112.10752).

Layer names and numerics follow diffusers' AutoencoderKL, so that public checkpoints convert one
to one. `patch_size` folds pixels into channels at both ends (our choice, for small networks that
are trained on CPUs, where wide planes of few channels are slow).
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mv2_jax import shards
from mv2_jax.config import VAEConfig
from mv2_jax.nn.attention import attend
from mv2_jax.nn.layers import Dtype, GroupNorm, conv, dense, depth_to_space, space_to_depth
from mv2_jax.nn.resnet import Downsample, ResnetBlock, Upsample

EPS = 1e-6  # every norm of the VAE
ENCODING = ("encoder", "quant_conv")  # of its parameters, those that make latents


class PlaneAttention(nn.Module):
    """One-head self-attention over the plane: [B, H, W, C] -> the same, residual.

    Where planes are split, a device's rows look at the keys of all.
    """

    groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        y = GroupNorm(self.groups, EPS, name="group_norm")(x).reshape(b, h * w, c)
        q, k, v = (
            dense(c, name=name, dtype=self.dtype)(y)[:, :, None]
            for name in ("to_q", "to_k", "to_v")
        )
        rows, length = shards.layout().rows, shards.rows_in_all(h) * w
        k, v = (shards.join(each, rows, 1, length) for each in (k, v))
        y = dense(c, name="to_out_0", dtype=self.dtype)(attend(q, k, v)[:, :, 0])
        return x + y.reshape(b, h, w, c)


class MidBlock(nn.Module):
    """Resnet, plane attention (where the config has it), resnet."""

    cfg: VAEConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width, groups = x.shape[-1], self.cfg.norm_groups
        x = ResnetBlock(width, groups, EPS, self.dtype, zero=False, name="resnets_0")(x)
        if self.cfg.mid_attention:
            x = PlaneAttention(groups, self.dtype, name="attentions_0")(x)
        return ResnetBlock(width, groups, EPS, self.dtype, zero=False, name="resnets_1")(x)


class Level(nn.Module):
    """`layers` resnets, then a change of resolution: "down", "up" or none.

    `shortcut` adds the plane folded (or unfolded) by `refold` to what the convolution makes.
    """

    features: int
    layers: int
    groups: int
    change: str | None
    shortcut: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for j in range(self.layers):
            x = ResnetBlock(
                self.features, self.groups, EPS, self.dtype, zero=False, name=f"resnets_{j}"
            )(x)
        if self.change is None:
            return x
        if self.change == "down":
            y = Downsample(self.features, (0, 1), self.dtype, name="downsamplers_0")(x)
        else:
            y = Upsample(self.features, self.dtype, name="upsamplers_0")(x)
        return y + refold(x, self.change, self.features) if self.shortcut else y


def refold(x: Array, change: str, features: int) -> Array:
    """A plane at half or twice the resolution without parameters, [B, H, W, C] -> `features`.

    Pixels are folded into channels (or unfolded) and the channels averaged (or repeated) to
    `features`, as DC-AE does.
    """
    if change == "down":
        x = space_to_depth(x, 2)
        if x.shape[-1] % features:
            raise ValueError(f"a shortcut cannot average {x.shape[-1]} channels to {features}")
        return x.reshape(*x.shape[:-1], features, -1).mean(-1)
    if 4 * features % x.shape[-1]:
        raise ValueError(f"a shortcut cannot repeat {x.shape[-1]} channels to {4 * features}")
    return depth_to_space(jnp.repeat(x, 4 * features // x.shape[-1], axis=-1), 2)


class Encoder(nn.Module):
    """Pixels [B, H, W, 3] -> mean and log variance, [B, H/f, W/f, 2 * latent_channels]."""

    cfg: VAEConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        cfg = self.cfg
        x = space_to_depth(x, cfg.patch_size)
        x = conv(cfg.channels[0], name="conv_in", dtype=self.dtype)(x)
        for i, width in enumerate(cfg.channels):
            change = "down" if i < len(cfg.channels) - 1 else None
            x = Level(
                width,
                cfg.layers_per_block,
                cfg.norm_groups,
                change,
                cfg.shortcuts,
                self.dtype,
                name=f"down_blocks_{i}",
            )(x)
        x = MidBlock(cfg, self.dtype, name="mid_block")(x)
        x = nn.silu(GroupNorm(cfg.norm_groups, EPS, name="conv_norm_out")(x))
        return conv(2 * cfg.latent_channels, name="conv_out", dtype=self.dtype)(x)


class Decoder(nn.Module):
    """Latents [B, h, w, latent_channels] -> pixels [B, h*f, w*f, 3]."""

    cfg: VAEConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, z: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        cfg = self.cfg
        levels, patch = cfg.decoder_levels, cfg.decoder_patch
        x = conv(levels[-1], name="conv_in", dtype=self.dtype)(z)
        x = MidBlock(cfg, self.dtype, name="mid_block")(x)
        for i, width in enumerate(reversed(levels)):
            change = "up" if i < len(levels) - 1 else None
            x = Level(
                width,
                cfg.layers_per_block + 1,
                cfg.norm_groups,
                change,
                cfg.shortcuts,
                self.dtype,
                name=f"up_blocks_{i}",
            )(x)
        x = nn.silu(GroupNorm(cfg.norm_groups, EPS, name="conv_norm_out")(x))
        x = conv(cfg.in_channels * patch**2, name="conv_out", dtype=self.dtype)(x)
        return depth_to_space(x, patch)


class AutoencoderKL(nn.Module):
    """The autoencoder; use `apply(..., method="encode")` and `method="decode"`.

    These work in the VAE's own latent units; `scale_latents` and `unscale_latents` go to and from
    the diffusion networks' units.
    """

    cfg: VAEConfig
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        latent = self.cfg.latent_channels
        self.encoder = Encoder(self.cfg, self.dtype)
        self.decoder = Decoder(self.cfg, self.dtype)
        self.quant_conv = conv(2 * latent, 1, name="quant_conv", dtype=self.dtype)
        self.post_quant_conv = conv(latent, 1, name="post_quant_conv", dtype=self.dtype)

    def encode(
        self, x: Float[Array, "B H W 3"]
    ) -> tuple[Float[Array, "B h w C"], Float[Array, "B h w C"]]:
        """Pixels [B, H, W, 3] in [-1, 1] -> mean and log variance, each [B, h, w, C], fp32.

        C is `cfg.plane_channels`, h = H / `cfg.factor`.

        Raises:
            ValueError: H or W does not divide by the patches.
        """
        moments = self.quant_conv(self.encoder(x.astype(self.dtype)))
        mean, logvar = (
            space_to_depth(part, self.cfg.latent_patch)
            for part in jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        )
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, z: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Latents [B, h, w, C] -> pixels [B, h*f, w*f, 3] in fp32, about [-1, 1], not clipped."""
        z = depth_to_space(z, self.cfg.latent_patch)
        z = self.post_quant_conv(z.astype(self.dtype))
        return self.decoder(z).astype(jnp.float32)

    def __call__(self, x: Array) -> Array:
        """Pixels through the mean latent and back; it is what `init` traces."""
        return self.decode(self.encode(x)[0])


def scale_latents(z: Float[Array, "*shape"], cfg: VAEConfig) -> Float[Array, "*shape"]:
    """The VAE's latents -> the diffusion networks' (about unit variance)."""
    return (z - cfg.shift_factor) * cfg.scaling_factor


def unscale_latents(z: Float[Array, "*shape"], cfg: VAEConfig) -> Float[Array, "*shape"]:
    """Inverse of `scale_latents`."""
    return z / cfg.scaling_factor + cfg.shift_factor
