"""ComfyUI's scaled float8: a weight is kept as float8 numbers and one scale beside them.

Known are its first form (a tensor `scaled_fp8` marks the file, each weight has a `.scale_weight`)
and the one that followed (`.weight_scale`, with a `.comfy_quant` of JSON that names the format). A
weight is its float8 numbers times its scale; scales of inputs only choose how fast it is computed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mv2_jax.convert.ops import as_numpy
from mv2_jax.convert.sources import View, spec
from mv2_jax.tensorfile import Spec

_SCALE = re.compile(r"(?P<layer>.+)\.(scale_weight|weight_scale)")
# What says how a layer was made, and is nothing of it.
_BESIDE = re.compile(r"(.+\.)?(scaled_fp8|comfy_quant|scale_input|input_scale)")
_FORMATS = ("float8_e4m3fn", "float8_e5m2")


class Scaled(View):
    """The tensors of a source, each float8 weight times its scale, in fp32."""

    def __init__(self, source: Mapping[str, Any], scales: Mapping[str, str]):
        """scales: {weight: its scale}, both by their names in the source."""
        plain = {n: n for n in source if not (_SCALE.fullmatch(n) or _BESIDE.fullmatch(n))}
        super().__init__(source, plain)
        self._scales = dict(scales)
        self.metadata: Mapping[str, str] = getattr(source, "metadata", {})

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if key not in self._scales:
            return value
        weight = as_numpy(value).astype(np.float32)
        scale = as_numpy(self._source[self._scales[key]]).astype(np.float32)
        if scale.size > 1:  # one for each row
            scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
        return weight * scale.reshape(scale.shape if scale.size > 1 else ())

    def spec(self, key: str) -> Spec:
        """Shape and type of a tensor, without reading it."""
        known = super().spec(key)
        return known._replace(dtype=np.dtype(np.float32)) if key in self._scales else known


def whole(source: Mapping[str, Any]) -> Mapping[str, Any]:
    """A source with its float8 weights scaled; one without scales as it is. Little is read.

    Raises:
        ValueError: scales without their weight, of another shape or format than is known, or a
            file that is marked as scaled and has no scales.
    """
    scales: dict[str, str] = {}
    for name in source:
        found = _SCALE.fullmatch(name)
        if found:
            scales[f"{found['layer']}.weight"] = name
    if not scales:
        if any(name.rpartition(".")[2] == "scaled_fp8" for name in source):
            raise ValueError("it is marked as scaled_fp8, but has no scale of any weight")
        return source
    for weight, scale in scales.items():
        _check(source, weight, scale)
    return Scaled(source, scales)


def _check(source: Mapping[str, Any], weight: str, scale: str) -> None:
    if weight not in source:
        raise ValueError(f"{scale} has no weight beside it")
    kept, count = spec(source, weight), int(np.prod(spec(source, scale).shape, dtype=np.int64))
    said = weight.removesuffix("weight") + "comfy_quant"
    form = kept.dtype.name
    if said in source:
        try:
            form = str(json.loads(as_numpy(source[said]).tobytes())["format"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{said} is damaged") from None
    if form not in _FORMATS or kept.dtype.name not in _FORMATS:
        raise ValueError(
            f"{weight} is quantised as {form}, which is not read (known: {', '.join(_FORMATS)}); "
            "most publishers have the plain weights too"
        )
    if count != 1 and count != kept.shape[0]:
        raise ValueError(f"{scale} has {count} numbers; one, or one for each row is known")
