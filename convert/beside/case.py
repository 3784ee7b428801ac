"""What a comparison needs of one network, on both sides."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.convert.engine import stream
from mv2_jax.convert.rules import Table
from mv2_jax.diffusion import keys
from mv2_jax.params import unflatten


@dataclass(frozen=True)
class Case:
    """One network on both sides.

    torch: makes torch's module. save: leaves it in a folder as public files are.
    inputs: arrays by name, the same at each call.
    theirs, ours: the outputs, from (module, inputs) and (dtype, params, inputs), in our layout.
    convert: our parameters from the folder.
    bound: what fp32 outputs may differ by, relative to the largest magnitude.
    """

    torch: Callable[[], Any]
    inputs: Callable[[], dict[str, np.ndarray]]
    theirs: Callable[[Any, dict[str, Any]], list[Any]]
    ours: Callable[[Any, Any, dict[str, Any]], list[jax.Array]]
    convert: Callable[[Path], Any]
    save: Callable[[Any, Path], None] = lambda module, folder: module.save_pretrained(folder)
    bound: float = 1e-4


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal random numbers in fp32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def filled(source: Mapping[str, Any], table: Table, target: Mapping[str, Any]) -> Any:
    """The target tree from a source, on the device, with one tensor more than it in memory."""
    return unflatten({name: jnp.asarray(x) for name, x in stream(source, table, target)})


def shapes(module: Any, *args: Any, **kwargs: Any) -> Any:
    """The abstract parameter tree of a Flax module."""
    init = functools.partial(module.init, keys.seed(0))
    return jax.eval_shape(init, *args, **kwargs)["params"]


def last(x: Any) -> Any:
    """[B, C, H, W] -> [B, H, W, C]."""
    return x.permute(0, 2, 3, 1)
