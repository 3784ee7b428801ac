"""How unlike two pictures look to a network: the distance of its features (arXiv 1603.08155).

LPIPS compares features of a classifier trained on photographs. Here the features are those of an
autoencoder that was trained by this project: the toybox's, unless another is named. It is never the
toybox's judge, which would then be asked about pictures made to please it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mv2_jax import shards
from mv2_jax.config import VAEConfig
from mv2_jax.models.vae import AutoencoderKL
from mv2_jax.nn.resnet import ResnetBlock


def features(params: Any, cfg: VAEConfig, images: jax.Array) -> list[jax.Array]:
    """What every resnet of the encoder makes of images [B, H, W, 3]: planes [B, h, w, C].

    H and W are multiples of `cfg.factor`.
    """

    def wanted(module: Any, method: str) -> bool:
        return isinstance(module, ResnetBlock) and method == "__call__"

    _, seen = AutoencoderKL(cfg).apply(
        {"params": params},
        images,
        method="encode",
        capture_intermediates=wanted,
        mutable=["intermediates"],
    )
    return jax.tree.leaves(seen["intermediates"])


def distance(params: Any, cfg: VAEConfig, made: jax.Array, real: jax.Array) -> jax.Array:
    """Mean squared distance of unit features, over positions and layers; 0 where equal.

    As in LPIPS (arXiv 1801.03924) each position's channels are brought to length one first.
    """
    return shards.over_samples(partial(_distance, cfg), params, made, real, results="mean")


def _distance(cfg: VAEConfig, params: Any, made: jax.Array, real: jax.Array) -> jax.Array:
    both = features(params, cfg, jnp.concatenate((made, real)))
    terms = []
    for plane in both:
        plane = plane.astype(jnp.float32)
        length = jnp.sqrt(jnp.sum(jnp.square(plane), axis=-1, keepdims=True) + 1e-8)
        ours, theirs = jnp.split(plane / length, 2)
        terms.append(jnp.mean(jnp.sum(jnp.square(ours - theirs), axis=-1)))
    return jnp.mean(jnp.stack(terms))
