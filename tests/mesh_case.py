"""A case of `test_meshes`: its kind, its mesh and its sizes; and what the kinds share."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
import tiny

from mv2_jax import sharding
from mv2_jax.config import MotionConfig, UNetConfig

Made = tuple[Any, Any, tuple[Any, ...]]
"""(function, its parameters, its other arguments): `function(params, *arguments)` is compared."""


class Case(NamedTuple):
    """`sizes` of the mesh, B, T, [h, w] of the latents, guidance rows; `deep`: two levels."""

    kind: str
    sizes: tuple[int, ...]
    batch: int
    frames: int
    plane: tuple[int, int]
    rows: int
    deep: bool

    def __str__(self) -> str:
        mesh = ",".join(f"{a}={n}" for a, n in zip(sharding.AXES, self.sizes) if n > 1)
        plane = "x".join(map(str, self.plane))
        return f"{self.kind}-{mesh}-R{self.rows}B{self.batch}T{self.frames}-{plane}"

    @property
    def pixels(self) -> tuple[int, int]:
        """The plane of the pictures."""
        return tuple(8 * n for n in self.plane)


def of_shapes(init: Any, *args: Any) -> Any:
    """Random parameters, of the shapes that `init(key, *args)` makes."""
    return tiny.random(jax.eval_shape(init, jax.random.key(0), *args), 0)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def spatial(case: Case) -> UNetConfig:
    """The backbone without motion."""
    if not case.deep:
        return dataclasses.replace(tiny.SPATIAL, heads=(4,))
    return dataclasses.replace(tiny.SPATIAL, channels=(8, 16), transformers=(1, 1), heads=(4, 8))


def inflated(case: Case, image: bool) -> UNetConfig:
    """The backbone with motion; `image`: with image tokens."""
    scope = "clip" if case.kind == "clip" else "frame"
    motion = MotionConfig(
        max_frames=8, heads=2, norm_groups=4, attentions=1, norm_scope=scope, mid_block=case.deep
    )
    if case.kind == "clip":
        motion = dataclasses.replace(motion, resnet_norm_scope="clip")
    return dataclasses.replace(spatial(case), motion=motion, image_tokens=image)
