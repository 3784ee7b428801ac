"""Small layers that every network here shares.

Shape letters (the whole project's): B batch, T frames, H, W plane, C channels, L tokens,
N heads, D head width. Parameters are cast to the layer's `dtype` on use; normalisation
statistics and sinusoids are always computed in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mv2_jax import exchanges, sharding, shards

Dtype = jnp.dtype


class Declared:
    """Mixin: a parameter that is given is compared with the shape it is declared with.

    Flax traces each parameter's initialiser for that comparison, at every trace of a network, which
    has hundreds of them. A device of a mesh, which holds a share of the parameter, gets it whole
    here (`shards.parameter`).
    """

    def param(self, name: str, init: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if args and self.has_variable("params", name):
            value, shape = self.get_variable("params", name), tuple(args[0])
            shards.check()
            if np.shape(value) == shape:
                return value
            if shards.inside() and np.ndim(value) == len(shape):
                return shards.parameter(value, "/".join((*self.path, name)), shape)
        return super().param(name, init, *args, **kwargs)  # a new one, or Flax's error


class GroupNorm(Declared, nn.Module):
    """Group normalisation over all axes of x [B, ..., C] but the first, per channel group.

    A clip's `frames`, rows of B that follow each other, are normalised together, also where they
    lie on several devices. Two-pass variance in fp32, as torch computes it; the result has x's
    dtype.
    """

    groups: int = 32
    eps: float = 1e-5
    frames: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        if channels % self.groups:
            raise ValueError(f"{channels} channels do not divide into {self.groups} norm groups")
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        flat = x.reshape(x.shape[0] // shards.frames_here(self.frames), -1, channels)
        flat = flat.astype(jnp.float32)

        def per_group(stat):  # [B, C] channel means -> the group's mean, on every channel of it
            grouped = stat.reshape(-1, self.groups, channels // self.groups).mean(-1)
            return jnp.repeat(grouped, channels // self.groups, axis=-1)[:, None]

        centred = flat - per_group(exchanges.mean_of_clip(flat, self.frames))
        variance = per_group(exchanges.mean_of_clip(jnp.square(centred), self.frames))
        out = centred * (jax.lax.rsqrt(variance + self.eps) * scale.astype(jnp.float32)[None, None])
        return (out + bias.astype(jnp.float32)[None, None]).astype(x.dtype).reshape(x.shape)


class LayerNorm(Declared, nn.Module):
    """Layer normalisation over the last axis, two-pass variance in fp32, as torch computes it."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        axes = (1,) * (x.ndim - 1) + shape
        scale, bias = (a.astype(jnp.float32).reshape(axes) for a in (scale, bias))
        return (centred * jax.lax.rsqrt(variance + self.eps) * scale + bias).astype(x.dtype)


def _wide(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A product of half-precision arrays whose result stays in fp32."""

    def run(a: jax.Array, b: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        return product(a.astype(jnp.float32), b.astype(jnp.float32), *args, **kwargs)

    return run


class Dense(Declared, nn.Dense):
    """Rounds once, after the bias; see `_rounds_twice`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x).astype(self.dtype)


class Conv(Declared, nn.Conv):
    """Rounds once, after the bias; see `_rounds_twice`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x).astype(self.dtype)


class Embed(Declared, nn.Embed):
    """Flax's table of learned rows."""


def _rounds_twice(dtype: Dtype) -> bool:
    """Whether XLA would round a product to `dtype` before and after adding the bias.

    Its CPU backend does, where torch adds the bias to the fp32 sums. Other backends are left as
    they are.
    """
    return jnp.dtype(dtype).itemsize < 4 and sharding.platform() == "cpu"


def _product(plain: Callable[..., jax.Array], wide: bool, summed: bool) -> dict[str, Any]:
    """Flax's argument for a layer's product, where it is not the plain one."""
    made = _wide(plain) if wide else plain
    if plain is jax.lax.conv_general_dilated and shards.layout().rows:
        made = exchanges.by_rows(made)
    if summed:
        made = exchanges.summed(made)
    return {} if made is plain else {plain.__name__: made}


def conv(
    features: int,
    kernel: int = 3,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
    *,
    name: str,
    dtype: Dtype,
    zero: bool = False,
    summed: bool = False,
) -> Conv:
    """A 2-D convolution with torch's explicit padding (before, after) on both axes.

    XLA's "SAME" pads strided convolutions differently from torch, so it is never used.
    `zero` starts it at zero, for branches that must begin as the identity. `summed`: x holds a part
    of the channels on each device of the tensor axis (`shards.parts`).
    """
    pad = (kernel // 2, kernel // 2) if padding is None else padding
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    form = (features, (kernel, kernel), stride, (pad, pad))
    product = _product(jax.lax.conv_general_dilated, _rounds_twice(dtype), summed)
    return Conv(*form, dtype=dtype, kernel_init=init, name=name, **product)


def dense(
    features: int,
    *,
    name: str,
    dtype: Dtype,
    bias: bool = True,
    zero: bool = False,
    summed: bool = False,
    kind: type[Dense] = Dense,
) -> Dense:
    """A linear layer; `zero` starts it at zero, so that its branch begins as the identity.

    `summed`: x holds a part of its width on each device of the tensor axis (`shards.parts`).
    """
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    product = _product(jax.lax.dot_general, bias and _rounds_twice(dtype), summed)
    return kind(features, use_bias=bias, dtype=dtype, kernel_init=init, name=name, **product)


def sinusoid(positions: jax.Array, width: int) -> jax.Array:
    """Cosines then sines of positions [...] -> [..., width] in fp32 (diffusers' flipped order)."""
    half = width // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[..., None] * frequencies.reshape(
        (1,) * positions.ndim + (half,)
    )
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class EmbeddingMLP(nn.Module):
    """Two linear layers with SiLU between: [B, C] -> [B, width] (time and SDXL's embeddings)."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = dense(self.width, name="linear_1", dtype=self.dtype)(x.astype(self.dtype))
        return dense(self.width, name="linear_2", dtype=self.dtype)(nn.silu(x))


class _Halves(Dense):
    """Two layers side by side, of which a device of the tensor axis makes the same part of each."""

    def param(self, name: str, init: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        *lead, width = args[0]
        whole = (*lead, width * shards.count("tensor"))
        whole = super().param(name, init, whole, *args[1:], **kwargs)
        own = shards.share(whole.reshape(*lead, 2, -1), ("tensor",), len(lead) + 1)
        return own.reshape(*lead, width)


class GEGLU(nn.Module):
    """Linear to twice the width, one half gating the other through the exact (erf) gelu.

    x [..., C] -> [..., width], or the device's part of it.
    """

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = 2 * self.width // shards.parts(self.width)
        kind = Dense if width == 2 * self.width else _Halves
        both = dense(width, name="proj", dtype=self.dtype, kind=kind)(x)
        value, gate = jnp.split(both, 2, axis=-1)
        return value * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """The transformer's GEGLU feed-forward: [..., C] -> [..., C]."""

    ratio: int = 4
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        inner = self.ratio * width
        x = GEGLU(inner, self.dtype, name="net_0")(x)
        summed = shards.parts(inner) > 1
        return dense(width, name="net_2", dtype=self.dtype, summed=summed)(x)


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] -> [B, H/p, W/p, p*p*C], rows of the patch slowest, channels fastest."""
    if patch == 1:
        return x
    b, h, w, c = x.shape
    if h % patch or w % patch:
        raise ValueError(f"a {h}x{w} plane does not divide into {patch}x{patch} patches")
    x = x.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
    """Inverse of `space_to_depth`."""
    if patch == 1:
        return x
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * patch, w * patch, c // patch**2)
