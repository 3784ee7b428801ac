"""CLIP's encoders and the autoencoder, in torch and here."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mv2_jax.config import TextConfig, VAEConfig, VisionConfig
from mv2_jax.convert import sources
from mv2_jax.convert.beside.case import Case, filled, last, noise, shapes
from mv2_jax.convert.sources import Renamed
from mv2_jax.convert.tables import clip, vae
from mv2_jax.models.clip_text import TextEncoder
from mv2_jax.models.clip_vision import VisionEncoder
from mv2_jax.models.vae import AutoencoderKL

TOKENS = 77


def encoder(cfg: TextConfig | VisionConfig, small: bool) -> Case:
    """A CLIP encoder: the states before the last layer, and the projected ones."""
    if small:
        cfg = dataclasses.replace(cfg, width=8 * cfg.heads, layers=3, mlp_width=64, projection=32)
    text = isinstance(cfg, TextConfig)
    side = None if text else cfg.image_size

    def given() -> dict[str, np.ndarray]:
        if not text:
            return {"pixels": noise(1, side, side, 3)}
        ids = np.random.default_rng(0).integers(1, 40000, (1, TOKENS)).astype(np.int32)
        ids[0, 20:] = cfg.eos_token_id
        return {"ids": ids}

    def make() -> Any:
        import transformers

        shape = dict(
            hidden_size=cfg.width,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            intermediate_size=cfg.mlp_width,
            hidden_act=cfg.activation,
            projection_dim=cfg.projection,
        )
        if text:
            shape |= dict(eos_token_id=cfg.eos_token_id, bos_token_id=cfg.eos_token_id - 1)
            return transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**shape))
        shape |= dict(image_size=cfg.image_size, patch_size=cfg.patch_size)
        return transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**shape))

    def theirs(module: Any, given: dict[str, Any]) -> list[Any]:
        source = given["ids"] if text else given["pixels"].permute(0, 3, 1, 2)
        out = module(source, output_hidden_states=True)
        return [out.hidden_states[-2], out.text_embeds if text else out.image_embeds]

    def ours(dtype: Any, params: Any, given: dict[str, Any]) -> list[jax.Array]:
        (source,) = given.values()
        network = (TextEncoder if text else VisionEncoder)(cfg, dtype)
        out = network.apply({"params": params}, source)
        return [out.hidden_states[-2], out.projected if text else out.image_embeds]

    def fill(folder: Path) -> Any:
        source = sources.load(folder)
        ((prefix, rules),) = (clip.find_text if text else clip.find_vision)(source)
        target = shapes((TextEncoder if text else VisionEncoder)(cfg), *given().values())
        return filled(Renamed(source, prefix), rules, target)

    return Case(make, given, theirs, ours, fill)


def autoencoder(small: bool, side: int = 600) -> Case:
    """SD's VAE on a square picture: the latents' mean, and pixels from latents."""
    cfg = VAEConfig(channels=(32, 32, 64, 64)) if small else VAEConfig()
    side = 72 if small else side
    z = side // 8

    def given() -> dict[str, np.ndarray]:
        return {"pixels": noise(1, side, side, 3), "z": noise(1, z, z, 4, seed=1)}

    def make() -> Any:
        import diffusers

        return diffusers.AutoencoderKL(
            block_out_channels=cfg.channels,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=cfg.layers_per_block,
        )

    def theirs(module: Any, given: dict[str, Any]) -> list[Any]:
        mean = module.encode(given["pixels"].permute(0, 3, 1, 2)).latent_dist.mean
        return [last(mean), last(module.decode(given["z"].permute(0, 3, 1, 2)).sample)]

    def ours(dtype: Any, params: Any, given: dict[str, Any]) -> list[jax.Array]:
        apply = functools.partial(AutoencoderKL(cfg, dtype).apply, {"params": params})
        return [apply(given["pixels"], method="encode")[0], apply(given["z"], method="decode")]

    def fill(folder: Path) -> Any:
        target = shapes(AutoencoderKL(cfg), noise(1, 16, 16, 3))
        return filled(sources.load(folder), vae.rules(), target)

    return Case(make, given, theirs, ours, fill)
