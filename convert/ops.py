"""The few ways in which one tensor's layout becomes another's, each with its inverse.

Layouts in torch's letters: O out, I in, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class Op:
    """`forward` maps a source array to a tuple with one array per target; `backward` undoes it.

    Both raise ValueError, saying what they expect, for a shape that they cannot take.
    """

    forward: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    backward: Callable[..., np.ndarray]


def as_numpy(array: Any) -> np.ndarray:
    """A NumPy view or copy of a NumPy, JAX or torch array; bfloat16 and float8 bit for bit."""
    if hasattr(array, "detach"):
        array = array.detach().cpu().contiguous()
        name = str(array.dtype).removeprefix("torch.")
        if name == "bfloat16" or name.startswith("float8"):
            # NumPy has none of these, so torch refuses to hand them over: pass the bits.
            import torch

            bits = array.view(torch.int16 if name == "bfloat16" else torch.uint8)
            return bits.numpy().view(getattr(ml_dtypes, name))
        return array.numpy()
    return np.asarray(array)


def _rank(array: np.ndarray, rank: int, layout: str) -> np.ndarray:
    if array.ndim != rank:
        raise ValueError(f"expected {layout}")
    return array


def _linear(x: np.ndarray) -> tuple[np.ndarray]:
    if x.ndim == 4 and x.shape[2:] == (1, 1):  # a 1x1 convolution is the same map
        x = x[:, :, 0, 0]
    return (_rank(x, 2, "a matrix [out, in] or a 1x1 convolution").T,)


def _conv(x: np.ndarray) -> tuple[np.ndarray]:
    return (_rank(x, 4, "a convolution [out, in, height, width]").transpose(2, 3, 1, 0),)


def _conv_transpose(x: np.ndarray) -> tuple[np.ndarray]:
    x = _rank(x, 4, "a transposed convolution [in, out, height, width]")
    return (x.transpose(2, 3, 0, 1)[::-1, ::-1],)


def _linear_to_conv(x: np.ndarray) -> tuple[np.ndarray]:
    return (_linear(x)[0][None, None],)


def _channels(x: np.ndarray) -> tuple[np.ndarray]:
    x = _rank(x, 4, "one number per channel, [1, channels, 1, 1]")
    if x.size != x.shape[1]:
        raise ValueError("expected one number per channel, [1, channels, 1, 1]")
    return (x.reshape(-1),)


def _thirds(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if x.shape[0] % 3:
        raise ValueError("expected query, key and value stacked on the first axis")
    return tuple(part.T for part in np.split(x, 3))


def _halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if x.shape[0] % 2:
        raise ValueError("expected key and value stacked on the first axis")
    return tuple(part.T for part in np.split(x, 2))


def _unbatch(x: np.ndarray) -> tuple[np.ndarray]:
    if x.ndim == 0 or x.shape[0] != 1:
        raise ValueError("expected a first axis of one")
    return (x[0],)


def _share(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _unbatch(x) * 2


def _unshare(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if not np.array_equal(first, second):
        raise ValueError("two tensors that differ, where that layout has room for one")
    return first[None]


def _stack(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate([part.T for part in parts])


OPS: dict[str, Op] = {
    # As it is: norms, biases, embeddings, class tokens.
    "copy": Op(lambda x: (x,), lambda x: x),
    # Linear [out, in] (or a 1x1 convolution) <-> kernel [in, out].
    "linear": Op(_linear, lambda x: x.T),
    # Convolution OIHW <-> HWIO.
    "conv": Op(_conv, lambda x: x.transpose(3, 2, 0, 1)),
    # 1x1 convolution [out, in, 1, 1] <-> kernel [in, out]; exported as a convolution again.
    "conv_to_linear": Op(_linear, lambda x: x.T[:, :, None, None]),
    # Linear [out, in] <-> kernel [1, 1, in, out].
    "linear_to_conv": Op(_linear_to_conv, lambda x: x[0, 0].T),
    # torch's ConvTranspose2d IOHW <-> HWIO of a convolution over the dilated input (flipped).
    "conv_transpose": Op(_conv_transpose, lambda x: x[::-1, ::-1].transpose(2, 3, 0, 1)),
    # [1, C, 1, 1] <-> [C].
    "channels": Op(_channels, lambda x: x.reshape(1, -1, 1, 1)),
    # Fused in_proj: weight [3*out, in] <-> three kernels [in, out]; bias [3*out] <-> three.
    "split_qkv": Op(_thirds, _stack),
    # Fused key and value: weight [2*out, in] <-> two kernels [in, out].
    "split_kv": Op(_halves, _stack),
    # [1, ...] <-> [...]: a batch axis of one that some checkpoints store.
    "unbatch": Op(_unbatch, lambda x: x[None]),
    # [1, ...] <-> two equal leaves [...].
    "share_unbatched": Op(_share, _unshare),
}
