"""A small video DiT (arXiv 2212.09748): attention over all patches of a clip, adaLN-Zero.

Letters as in the package: N samples, T frames, h, w the latent plane, L tokens, D a head's width.
Made of the package's layers, which gather their parameters on a mesh themselves. A device may hold
some of a clip's frames: queries are its own, keys and values are gathered from all (`shards`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mv2_jax import shards
from mv2_jax.nn.attention import Attention, attend
from mv2_jax.nn.layers import (
    EmbeddingMLP,
    FeedForward,
    LayerNorm,
    dense,
    depth_to_space,
    sinusoid,
    space_to_depth,
)


def angles(positions, width, base=100.0):
    """Rotary angles [L, width / 2] of tokens at (frame, row, column) `positions` [L, 3], fp32.

    The pairs of a head's width are shared out between the three axes, the frames' first; each share
    has frequencies from 1 down towards 1 / base (arXiv 2104.09864, on three axes).
    """
    pairs = width // 2
    space = pairs // 3
    shares = (pairs - 2 * space, space, space)
    turned = [
        positions[:, axis, None] * base ** (-jnp.arange(count, dtype=jnp.float32) / count)[None]
        for axis, count in enumerate(shares)
    ]
    return jnp.concatenate(turned, axis=-1)


def rotate(x, turned):
    """x [N, L, heads, D] with each pair of D turned by angles [L, D / 2], in fp32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(turned)[None, :, None], jnp.sin(turned)[None, :, None]
    out = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(out, axis=-1).astype(x.dtype)


class SelfAttention(nn.Module):
    """x [N, t * l, C], the tokens of this device's t frames, over those of the whole clip."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, turned, frames):
        width, parts = x.shape[-1], shards.parts(self.heads)

        def project(name):
            y = dense(width // parts, name=name, dtype=self.dtype, bias=False)(x)
            return y.reshape(*y.shape[:2], self.heads // parts, width // self.heads)

        def whole(y):  # [N, t * l, ...] -> [N, T * l, ...]
            split = y.reshape(y.shape[0], frames, -1, *y.shape[2:])
            return shards.joined(split).reshape(y.shape[0], -1, *y.shape[2:])

        query, key = (rotate(project(name), turned) for name in ("to_q", "to_k"))
        out = attend(query, whole(key), whole(project("to_v")))
        out = out.reshape(*out.shape[:2], -1)
        return dense(width, name="to_out_0", dtype=self.dtype, summed=parts > 1)(out)


def modulate(x, shift, scale):
    """The norm of x [N, L, C] with no weights of its own, shifted and scaled by [N, C], in fp32."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
    return (normed * (1 + scale[:, None]) + shift[:, None]).astype(x.dtype)


class Steer(nn.Module):
    """[N, C] -> `count` vectors [N, C], zeros before training: gates that let nothing through."""

    count: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, steer):
        width = self.count * steer.shape[-1]
        out = dense(width, name="ada", dtype=self.dtype, zero=True)(nn.silu(steer))
        return jnp.split(out.astype(jnp.float32), self.count, axis=-1)


class Block(nn.Module):
    """Self-attention, cross-attention to the words and the picture's tokens, feed-forward."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, steer, turned, frames, told):
        parts = Steer(6, self.dtype, name="steer")(steer)
        shift, scale, gate = parts[:3]
        y = SelfAttention(self.heads, self.dtype, name="attn1")(
            modulate(x, shift, scale), turned, frames
        )
        x = x + (gate[:, None] * y).astype(x.dtype)
        cross = Attention(self.heads, self.dtype, image_tokens=told[1] is not None, name="attn2")
        x = x + cross(LayerNorm(name="norm2")(x), *told)
        shift, scale, gate = parts[3:]
        y = FeedForward(2, self.dtype, name="ff")(modulate(x, shift, scale))
        return x + (gate[:, None] * y).astype(x.dtype)


class DiT(nn.Module):
    """Noisy latents x [N, t, h, w, C] at t [N] -> the output, like x.

    beside: [N, h, w, c], laid beside the channels of every frame (the reference picture's latent).
    told: words [N, L, c], and the picture's tokens [N, Li, c] with their scale [N], or None twice.
    """

    width: int
    depth: int
    heads: int
    patch: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x, t, beside, told):
        samples, frames, *plane, channels = x.shape
        beside = jnp.broadcast_to(beside[:, None], (*x.shape[:-1], beside.shape[-1]))
        y = jnp.concatenate([x, beside], axis=-1).reshape(samples * frames, *plane, -1)
        # A plane that patches do not divide is filled up with zeros.
        fill = [(0, -side % self.patch) for side in plane]
        y = space_to_depth(jnp.pad(y, [(0, 0), *fill, (0, 0)]), self.patch)
        rows, columns = y.shape[1:3]
        y = dense(self.width, name="proj_in", dtype=self.dtype)(y.astype(self.dtype))
        y = y.reshape(samples, frames * rows * columns, self.width)
        steer = EmbeddingMLP(self.width, self.dtype, name="time_embedding")(sinusoid(t, self.width))
        turned = angles(self._positions(frames, rows, columns), self.width // self.heads)
        block = nn.remat(Block, static_argnums=(4,)) if self.remat else Block
        for k in range(self.depth):
            own = block(self.heads, self.dtype, name=f"blocks_{k}")
            y = own(y, steer, turned, frames, told)
        y = modulate(y, *Steer(2, self.dtype, name="steer_out")(steer))
        y = dense(self.patch**2 * channels, name="proj_out", dtype=self.dtype, zero=True)(y)
        y = depth_to_space(y.reshape(samples * frames, rows, columns, -1), self.patch)
        y = y[:, : plane[0], : plane[1]]
        return y.reshape(x.shape).astype(x.dtype)

    def _positions(self, frames, rows, columns):
        """(frame, row, column) [L, 3] of the tokens that are on this device."""
        number = shards.own(jnp.arange(shards.frames(frames), dtype=jnp.float32)[None])[0]
        axes = (number, jnp.arange(rows, dtype=jnp.float32), jnp.arange(columns, dtype=jnp.float32))
        return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
