"""Frames between the frames by the paper's GAN interpolator, steadied by a light model.

MagicVideo-V2 (arXiv 2401.04468), section 2.4. The light model, RIFE or EMA-VFI, makes each frame
first; the network of `models.gan_vfi` encodes and corrects it. The functions answer to those of
`stages.vfi`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mv2_jax import params as trees
from mv2_jax.config import GANVFIConfig
from mv2_jax.models.gan_vfi import GANVFI
from mv2_jax.stages import gaps, vfi, vfi_table


def complete(tree: Mapping[str, Any], cfg: GANVFIConfig) -> tuple[Any, Any]:
    """Tree and config; where the light model is missing, RIFE is it.

    Files of the GAN's own parameters (as converted from LDMVFI's) and cascade folders, beside
    which RIFE ships anyway, hold no light model.

    Raises:
        ValueError: the GAN wants another light model than the RIFE that ships.
    """
    if "light" in tree:
        return tree, cfg
    light, light_cfg = vfi.shipped()
    if cfg.light != light_cfg:
        raise ValueError(f"its light model, a {type(cfg.light).__name__[:-6]}, is missing")
    return {"light": light, "gan": tree.get("gan", tree)}, cfg


@functools.partial(jax.jit, static_argnames=("cfg", "dtype"))
def between(
    params: Mapping[str, Any],
    cfg: GANVFIConfig,
    first: Array,
    second: Array,
    times: Array,
    *,
    dtype: Any = jnp.float32,
) -> Array:
    """Frames at chosen times between pairs: [P, H, W, 3] twice, times [P, K] -> [P, K, H, W, 3].

    `params` is {"light": the light model's tree, "gan": the network's}. Frames are in [-1, 1], any
    plane; time 0 is the first's, 1 the second's. The neighbours are encoded once for all times.
    Identical pairs give copies.
    """
    light = vfi_table.of(cfg.light).part("between")
    guesses = light(params["light"], cfg.light, first, second, times, dtype=dtype)
    model = GANVFI(cfg, dtype)
    variables = {"params": trees.cast(params["gan"], dtype)}
    height, width = first.shape[1:3]
    around = model.apply(variables, first, second, method="neighbours")

    def make(at: tuple[Array, Array]) -> Array:
        out, _ = model.apply(variables, around, *at, method="frame")
        return out[:, :height, :width]

    # One time after the other, so that working memory does not grow with their number.
    new = jax.lax.map(make, (jnp.moveaxis(guesses, 1, 0), times.T))
    new = gaps.unit(jnp.clip(jnp.moveaxis(new, 0, 1), -1, 1))
    return gaps.keep_stills(first, second, new)
