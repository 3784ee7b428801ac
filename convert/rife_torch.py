"""RIFE 4.25 in PyTorch, as the public code runs it: the yardstick of `mv2 bench vfi`.

Everything is done plainly, as hzwer/Practical-RIFE does: each block's output is brought to full
size, whole frames and features are warped for every block, kernels are torch's own. Its weights are
those of the JAX network, sent back through the converter's table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mv2_jax.config import RIFEConfig
from mv2_jax.convert.engine import export
from mv2_jax.convert.tables import rife

FLOW = 4
Between = Callable[[np.ndarray, np.ndarray, Sequence[float]], list[np.ndarray]]


def version() -> str:
    """PyTorch's version. Raises ImportError where it is not installed."""
    import torch

    return torch.__version__


def load(tree: Any, cfg: RIFEConfig) -> Between:
    """A function from two frames uint8 [H, W, 3] and times to frames uint8 [H, W, 3], on CPU.

    Raises:
        ImportError: PyTorch is not installed.
    """
    import torch

    weights = {
        name: torch.tensor(np.asarray(value, np.float32))
        for name, value in export(tree, rife.rules()).items()
    }

    def between(first: np.ndarray, second: np.ndarray, times: Sequence[float]) -> list[np.ndarray]:
        height, width = first.shape[:2]
        with torch.inference_mode():
            frames = [_padded(x, cfg.pad_to) for x in (first, second)]
            features = [_head(weights, x) for x in frames]
            made = []
            for time in times:
                new = _one(weights, cfg, frames, features, time)[0, :, :height, :width]
                made.append((new.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
        return made

    return between


def _one(weights: Any, cfg: RIFEConfig, frames: list, features: list, time: float) -> Any:
    """One new frame [1, 3, H, W]."""
    import torch

    flow = mask = state = None
    warped = frames
    for i, scale in enumerate(cfg.scales):
        if flow is None:
            seen, last = [*frames, *features], []
        else:
            halves = (flow[:, :2], flow[:, 2:])
            seen = [*warped, *(_warp(x, half) for x, half in zip(features, halves))]
            last = [mask, state]
        clock = torch.full_like(frames[0][:, :1], time)
        x = _resize(torch.cat([*seen, clock, *last], 1), 1 / scale)
        if flow is not None:
            x = torch.cat((x, _resize(flow, 1 / scale) / scale), 1)
        out = _resize(_block(weights, f"block{i}", x), scale)
        added = out[:, :FLOW] * scale
        flow = added if flow is None else flow + added
        mask, state = out[:, FLOW : FLOW + 1], out[:, FLOW + 1 :]
        warped = [_warp(x, half) for x, half in zip(frames, (flow[:, :2], flow[:, 2:]))]
    share = torch.sigmoid(mask)
    return warped[0] * share + warped[1] * (1 - share)


def _head(weights: Any, x: Any) -> Any:
    for i, stride in enumerate((2, 1, 1)):
        x = _leaky(_conv(weights, f"encode.cnn{i}", x, stride))
    return _up(weights, "encode.cnn3", x)


def _block(weights: Any, name: str, x: Any) -> Any:
    import torch

    x = _leaky(_conv(weights, f"{name}.conv0.0.0", x, 2))
    x = _leaky(_conv(weights, f"{name}.conv0.1.0", x, 2))
    for j in range(8):
        part = f"{name}.convblock.{j}"
        x = _leaky(_conv(weights, f"{part}.conv", x, 1) * weights[f"{part}.beta"] + x)
    return torch.nn.functional.pixel_shuffle(_up(weights, f"{name}.lastconv.0", x), 2)


def _conv(weights: Any, name: str, x: Any, stride: int) -> Any:
    import torch

    kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return torch.nn.functional.conv2d(x, kernel, bias, stride, 1)


def _up(weights: Any, name: str, x: Any) -> Any:
    import torch

    kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return torch.nn.functional.conv_transpose2d(x, kernel, bias, 2, 1)


def _leaky(x: Any) -> Any:
    import torch

    return torch.nn.functional.leaky_relu(x, 0.2)


def _resize(x: Any, factor: float) -> Any:
    import torch

    if factor == 1:
        return x
    return torch.nn.functional.interpolate(
        x, scale_factor=factor, mode="bilinear", align_corners=False
    )


def _warp(x: Any, flow: Any) -> Any:
    import torch

    height, width = x.shape[2:]
    # The public code keeps its grid as well, between -1 and 1.
    span = torch.tensor([(width - 1) / 2, (height - 1) / 2])
    points = _grid(height, width) + flow.permute(0, 2, 3, 1) / span
    return torch.nn.functional.grid_sample(
        x, points, mode="bilinear", padding_mode="border", align_corners=True
    )


@functools.lru_cache(maxsize=2)
def _grid(height: int, width: int) -> Any:
    import torch

    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    return torch.stack((columns, rows), -1)[None]


def _padded(frame: np.ndarray, pad_to: int) -> Any:
    """uint8 [H, W, 3] -> fp32 [1, 3, H', W'] in [0, 1], black below and to the right."""
    import torch

    pad = (0, -frame.shape[1] % pad_to, 0, -frame.shape[0] % pad_to)
    x = torch.tensor(frame).permute(2, 0, 1)[None].float() / 255
    return torch.nn.functional.pad(x, pad)
