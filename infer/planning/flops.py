"""Useful FLOPs of a traced program.

A multiplication and an addition are two. Only matrix products, convolutions and attention count:
what norms, activations and recomputation cost is the implementation's affair. Loops count as often
as they run; of a branch the dearer side counts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jax.extend import core


def count(jaxpr: Any) -> float:
    """Useful FLOPs of one run of a jaxpr, closed or not.

    A `while` loop, whose length nobody knows before it runs, counts once. Attention that goes by
    blocks in plain JAX counts its blocks' padding.
    """
    return sum(equation(eqn) for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def equation(eqn: Any) -> float:
    """Of one equation, with what is within it."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = eqn.invars[0].aval.shape
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    if name == "conv_general_dilated":
        return _convolution(eqn)
    if name.startswith("dot_product_attention"):
        return _attention(eqn)
    if name == "pallas_call":
        estimate = params.get("cost_estimate")
        return float(estimate.flops) if estimate else 0.0
    if name == "cond":
        return max(count(branch) for branch in params["branches"])
    inner = sum(count(jaxpr) for value in params.values() for jaxpr in inside(value))
    return inner * params["length"] if name == "scan" else inner


def _convolution(eqn: Any) -> float:
    """Every position of the result by every tap that meets a value, not padding or dilation."""
    params, spec = eqn.params, eqn.params["dimension_numbers"]
    x, kernel, out = (v.aval.shape for v in (*eqn.invars, *eqn.outvars))
    pairs = 1
    for axis, (low, _) in enumerate(params["padding"]):
        size, taps, places = (
            shape[where[axis + 2]]
            for shape, where in ((x, spec.lhs_spec), (kernel, spec.rhs_spec), (out, spec.out_spec))
        )
        spread = params["lhs_dilation"][axis]
        met = np.arange(places)[:, None] * params["window_strides"][axis] - low
        met = met + np.arange(taps)[None] * params["rhs_dilation"][axis]
        pairs *= int(((met >= 0) & (met <= (size - 1) * spread) & (met % spread == 0)).sum())
    batch, features = (out[spec.out_spec[i]] for i in (0, 1))
    return 2.0 * pairs * batch * features * kernel[spec.rhs_spec[1]]


def _attention(eqn: Any) -> float:
    """cuDNN's attention: two matrix products forwards, and four that are needed backwards."""
    batch, queries, heads, width = eqn.invars[0].aval.shape
    products = 4 if "bwd" in eqn.primitive.name else 2
    return 2.0 * products * batch * heads * queries * eqn.invars[1].aval.shape[1] * width


def inside(value: Any) -> list[Any]:
    """The jaxprs in a parameter of an equation."""
    if isinstance(value, (tuple, list)):
        return [jaxpr for one in value for jaxpr in inside(one)]
    return [value] if isinstance(value, (core.Jaxpr, core.ClosedJaxpr)) else []
