"""The parameter trees that configs ask for, as shapes: what a conversion has to fill."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from mv2_jax import params
from mv2_jax.config import (
    ControlNetConfig,
    ImageProjectionConfig,
    SparseControlConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
    VisionConfig,
)
from mv2_jax.diffusion import keys
from mv2_jax.models.clip_text import TextEncoder
from mv2_jax.models.clip_vision import VisionEncoder
from mv2_jax.models.controlnet import ControlNet
from mv2_jax.models.image_projection import ImageProjection
from mv2_jax.models.sparse_control import SparseControlNet
from mv2_jax.models.unet import UNet, split_unet
from mv2_jax.models.vae import AutoencoderKL
from mv2_jax.nn.transformer import Context


@functools.cache
def unet(cfg: UNetConfig) -> dict[str, params.Tree]:
    """{"spatial", "motion", "image_attn"} of a UNet; the latter two are empty where it lacks them.

    Raises:
        ValueError: the config contradicts itself.
    """
    return split_unet(_shapes(UNet(cfg), *_noisy(cfg), _context(cfg)))


def controlnet(cfg: ControlNetConfig) -> params.Tree:
    """The tree of a ControlNet on pictures."""
    x, t = _noisy(cfg.unet)
    side = x.shape[2] * cfg.condition_factor
    kind = (1.0, np.zeros(1, np.int32)) if cfg.types else ()
    return _shapes(ControlNet(cfg), x, t, _context(cfg.unet), _zeros(1, side, side, 3), *kind)


def sparse_control(cfg: SparseControlConfig) -> params.Tree:
    """The tree of a SparseCtrl encoder of latents."""
    x, t = _noisy(cfg.unet)
    given = _zeros(*x.shape[:-1], cfg.condition_channels)
    return _shapes(SparseControlNet(cfg), given, _zeros(1, 1), t, _context(cfg.unet))


def vae(cfg: VAEConfig) -> params.Tree:
    """The tree of an autoencoder."""
    side = 2 * cfg.factor
    return _shapes(AutoencoderKL(cfg), _zeros(1, side, side, cfg.in_channels))


def text(cfg: TextConfig) -> params.Tree:
    """The tree of a text encoder."""
    return _shapes(TextEncoder(cfg), np.zeros((1, cfg.max_length), np.int32))


def vision(cfg: VisionConfig) -> params.Tree:
    """The tree of a vision encoder."""
    return _shapes(VisionEncoder(cfg), _zeros(1, cfg.image_size, cfg.image_size, 3))


def image_projection(cfg: ImageProjectionConfig) -> params.Tree:
    """The tree of an image projection."""
    shape = (1, cfg.in_width) if cfg.kind == "linear" else (1, 5, cfg.in_width)
    return _shapes(ImageProjection(cfg), _zeros(*shape))


def _noisy(cfg: UNetConfig) -> tuple[np.ndarray, np.ndarray]:
    """Latents on a plane that every level can halve, and a timestep."""
    side = 2 ** len(cfg.channels)
    return _zeros(1, 1, side, side, cfg.in_channels), _zeros(1)


def _context(cfg: UNetConfig) -> Context:
    """Text, and what else the network reads: a picture's tokens, SDXL's pooled text and sizes."""
    text = _zeros(1, 7, cfg.context_width)
    image = _zeros(1, 4, cfg.context_width) if cfg.image_tokens else None
    if cfg.pooled_width is None:
        return Context(text, image)
    return Context(text, image, pooled=_zeros(1, cfg.pooled_width), size_ids=_zeros(1, 6))


def _zeros(*shape: int) -> np.ndarray:
    return np.broadcast_to(np.float32(0), shape)


def _shapes(module: Any, *args: Any) -> params.Tree:
    return jax.eval_shape(lambda: module.init(keys.seed(0), *args))["params"]
