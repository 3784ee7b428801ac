"""Between pixels and the diffusion networks' latents, for pictures and clips alike."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mv2_jax import shards
from mv2_jax.config import VAEConfig
from mv2_jax.models.vae import AutoencoderKL, scale_latents, unscale_latents
from mv2_jax.stages import tiles

# Pixels that go through the autoencoder at once: memory is bound by this, not by a clip's length.
PIXELS_AT_ONCE = 2**19


def _few_at_a_time(function: Any, params: Any, x: Array, pixels: int, cells: int) -> Array:
    """`function(params, frames)` over x [B, ..., H, W, C] as frames [n, H, W, C], n bound by
    `pixels` a frame; on a mesh each device takes its share of them, or of their rows (`cells` as
    in `shards.over_frames`)."""

    def share(params: Any, x: Array) -> Array:
        lead = x.shape[:-3]
        flat = x.reshape(-1, *x.shape[-3:])
        here = pixels // shards.count(shards.layout().rows)
        out = jax.lax.map(
            lambda one: function(params, one[None])[0],
            flat,
            batch_size=min(flat.shape[0], max(1, PIXELS_AT_ONCE // here)),
        )
        return out.reshape(*lead, *out.shape[1:])

    if x.ndim == 4:  # pictures are clips of one frame
        return shards.over_frames(share, params, x[:, None], cells)[:, 0]
    return shards.over_frames(share, params, x, cells)


def encode(
    params: Any,
    cfg: VAEConfig,
    pixels: Float[Array, " B *T H W 3"],
    dtype: Any = jnp.float32,
    tile: int = 0,
) -> Float[Array, " B *T h w C"]:
    """Pixels [B, (T,) H, W, 3] in [-1, 1] -> scaled latents [B, (T,) h, w, C] in fp32.

    The latent is the posterior's mean: a reference picture has one latent, not a random one.
    `tile`: pixels along a tile (`stages.tiles`), a multiple of four latent cells; 0: no tiles.
    """
    vae = AutoencoderKL(cfg, dtype)

    def whole(params: Any, x: Array) -> Array:
        return scale_latents(vae.apply({"params": params}, x, method="encode")[0], cfg)

    def one(params: Any, x: Array) -> Array:
        run = partial(whole, params)
        return tiles.tiled(run, x, tile, tile // cfg.factor) if tile else run(x)

    height = pixels.shape[-3]
    cells = 0 if tile or height % cfg.factor else height // cfg.factor
    return _few_at_a_time(one, params, pixels, _pixels(pixels.shape[-3:-1], 1, tile), cells)


def decode(
    params: Any,
    cfg: VAEConfig,
    latents: Float[Array, " B *T h w C"],
    dtype: Any = jnp.float32,
    tile: int = 0,
) -> Float[Array, " B *T H W 3"]:
    """Scaled latents [B, (T,) h, w, C] -> pixels [B, (T,) H, W, 3] in [-1, 1], fp32; `tile` as in
    `encode`."""
    vae = AutoencoderKL(cfg, dtype)

    def whole(params: Any, z: Array) -> Array:
        own = {"params": params}
        return cast(Array, vae.apply(own, unscale_latents(z, cfg), method="decode"))

    def one(params: Any, z: Array) -> Array:
        run = partial(whole, params)
        pixels = tiles.tiled(run, z, tile // cfg.factor, tile) if tile else run(z)
        return jnp.clip(pixels, -1.0, 1.0)

    plane = latents.shape[-3:-1]
    cells = 0 if tile else plane[0]  # tiles are cut from whole planes
    return _few_at_a_time(one, params, latents, _pixels(plane, cfg.factor, tile), cells)


def _pixels(plane: tuple[int, ...], factor: int, tile: int) -> int:
    """Pixels that are in memory at once for a frame."""
    height, width = (min(side * factor, tile or side * factor) for side in plane)
    return height * width


def resize(
    pixels: Float[Array, " B *T H0 W0 C"], size: tuple[int, int]
) -> Float[Array, " B *T H W C"]:
    """Pixels [B, (T,) H, W, 3] -> the same at `size`, bicubic, antialiased, kept in [-1, 1]."""
    if pixels.shape[-3:-1] == tuple(size):
        return pixels
    shape = (*pixels.shape[:-3], *size, pixels.shape[-1])
    return jnp.clip(jax.image.resize(pixels, shape, "cubic"), -1.0, 1.0)
