"""The presets at full size or tiny, and random weights for them on the device."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.config import RIFEConfig, UNetConfig
from mv2_jax.configs import presets
from mv2_jax.infer import rehearse


def preset(name: str, small: bool) -> Any:
    """A preset, or the same with networks and planes of nothing: odd where the preset's are odd."""
    whole = presets.PRESETS[name]
    if not small:
        return whole
    made = rehearse.reduced(whole, 16, frames=3)
    video, picture = narrow(made.I2V.unet), narrow(made.T2I.unet)
    rest = {"width": 32, "layers": 1, "heads": 2, "mlp_width": 32}
    made.TEXT = dataclasses.replace(made.TEXT, **rest)
    if made.TEXT_2 is not None:
        made.TEXT_2 = dataclasses.replace(made.TEXT_2, **rest, projection=32)
    made.VISION = dataclasses.replace(
        made.VISION, image_size=28, patch_size=14, **rest, projection=None
    )
    made.PROJECTION = dataclasses.replace(
        made.PROJECTION, in_width=32, width=32, out_width=32, heads=2, depth=1, tokens=4
    )
    made.CONTROL = dataclasses.replace(made.CONTROL, unet=narrow(made.CONTROL.unet))
    for field in ("VAE", "PICTURE_VAE"):
        vae = getattr(made, field)
        channels = tuple(width // 16 for width in vae.channels)
        made.__dict__[field] = dataclasses.replace(
            vae, channels=channels, layers_per_block=1, norm_groups=4
        )
    made.RIFE = RIFEConfig(widths=(8, 8), scales=(2, 1), pad_to=32)
    made.T2I = dataclasses.replace(made.T2I, unet=picture)
    made.I2V = dataclasses.replace(made.I2V, unet=video)
    made.V2V = dataclasses.replace(made.V2V, unet=video)
    return made


def narrow(cfg: UNetConfig) -> UNetConfig:
    """The same network with two levels, few channels and few layers."""
    return dataclasses.replace(
        cfg,
        channels=tuple(width // 20 for width in cfg.channels[:2]),
        layers_per_block=1,
        transformers=tuple(min(depth, 1) for depth in cfg.transformers[:2]),
        mid_transformers=1,
        heads=(2, 2),
        context_width=64 if cfg.pooled_width else 32,
        pooled_width=cfg.pooled_width and 32,
        norm_groups=4,
        motion=cfg.motion and dataclasses.replace(cfg.motion, heads=2, norm_groups=4),
    )


class Weights:
    """Random weights by preset, made once: the video stages of `sd15` and `paper` share theirs."""

    def __init__(self, dtype: Any, small: bool = False) -> None:
        self.dtype = jnp.dtype(dtype)
        self._shapes: dict[Any, dict[str, Any]] = {}
        self._made: dict[Any, Any] = {}
        # All weights are cut from these numbers, each from a place of its own.
        count = 2**18 if small else 2**24
        self._pool = np.random.default_rng(1).standard_normal(count, np.float32)
        self._scaled: dict[tuple[int, str], np.ndarray] = {}
        self._cut = 0

    def shapes(self, made_of: Any) -> dict[str, Any]:
        """The abstract trees of all that a preset's four stages take, as in `Cascade.params`."""
        picture = self._of(made_of, "t2i", made_of.T2I.unet, made_of.PICTURE_VAE, made_of.TEXT_2)
        video = self._of(made_of, "i2v", made_of.I2V.unet, made_of.VAE, made_of.CONTROL)
        between = self._of(made_of, "vfi", made_of.RIFE)
        # Planes and frames change no weight, so that V2V's are as I2V's.
        return {**picture, **video, "motion_v2v": video["motion_i2v"], **between}

    def _of(self, made_of: Any, stage: str, *told: Any) -> dict[str, Any]:
        key = (stage, *told)
        if key not in self._shapes:
            trees = rehearse.shapes(made_of, stage)
            self._shapes[key] = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, self.dtype), trees
            )
        return self._shapes[key]

    def make(self, trees: dict[str, Any]) -> dict[str, Any]:
        """Random weights of these shapes on the device. Nothing has to be compiled for it."""
        made = {}
        for name, tree in trees.items():
            leaves, structure = jax.tree.flatten(tree)
            key = (name, structure, tuple(leaf.shape for leaf in leaves))
            if key not in self._made:
                self._made[key] = jax.tree_util.tree_map_with_path(self._leaf, tree)
            made[name] = self._made[key]
        return made

    def drop(self, begins: str) -> None:
        """Forgets components by how their names begin; what nobody holds leaves the device."""
        self._made = {key: x for key, x in self._made.items() if not key[0].startswith(begins)}

    def _leaf(self, path: Any, leaf: Any) -> jax.Array:
        """Kernels keep a signal's scale, norms begin as they do in training."""
        name = str(getattr(path[-1], "key", path[-1]))
        if name in ("scale", "bias", "beta"):
            fill = np.ones if name == "scale" else np.zeros
            return jax.device_put(fill(leaf.shape, leaf.dtype))
        inputs = int(np.prod(leaf.shape[:-1])) if name == "kernel" else 2500
        size, pool = int(np.prod(leaf.shape)), self._pool_of(inputs, leaf.dtype)
        self._cut = (self._cut + 7919) % (len(pool) // 4)
        flat = pool[self._cut : self._cut + size]
        return jax.device_put(np.resize(flat, leaf.shape))

    def _pool_of(self, inputs: int, dtype: Any) -> np.ndarray:
        key = (inputs, str(dtype))
        if key not in self._scaled:
            self._scaled[key] = (self._pool * np.float32(inputs**-0.5)).astype(dtype)
        return self._scaled[key]
