"""CLIP's vision encoder (arXiv 2103.00020) and the way of an image into it.

Parameters are named as in transformers' CLIPVisionModelWithProjection without the
`vision_model.` prefix. Shape letters: B batch, H, W plane, L tokens, C width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mv2_jax.config import VisionConfig
from mv2_jax.models.clip import Encoder
from mv2_jax.nn.layers import Conv, Dtype, Embed, LayerNorm, dense
from mv2_jax.nn.resample import apply_columns, apply_rows, cubic_matrix

# Mean and deviation of CLIP's training images, per channel, for RGB in [0, 1].
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class VisionOutput(NamedTuple):
    """What a vision encoder knows of an image.

    hidden_states: layers + 1 arrays [B, 1 + patches, C]: the embeddings (through the first
        norm), then each layer's output; none of them through the last norm. The first token is
        the class token, patches follow row by row.
    pooled: [B, C], the class token of the last layer through the last norm.
    image_embeds: [B, P], `pooled` through the projection; None where the config has none.
    """

    hidden_states: tuple[jax.Array, ...]
    pooled: jax.Array
    image_embeds: jax.Array | None


class VisionEmbeddings(nn.Module):
    """Class token, patches and positions: pixels [B, H, W, 3] -> [B, 1 + patches, C]."""

    cfg: VisionConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        cfg = self.cfg
        b, h, w, _ = pixels.shape
        patch, side = cfg.patch_size, cfg.image_size // cfg.patch_size
        if min(h, w) < patch:
            raise ValueError(f"a {h}x{w} image is smaller than one {patch}x{patch} patch")
        size = (patch, patch)
        # Pixels beyond the last whole patch are left out, as torch's convolution leaves them.
        patches = Conv(
            cfg.width, size, size, "VALID", use_bias=False, dtype=self.dtype, name="patch_embedding"
        )(pixels)
        grid = patches.shape[1:3]
        token = self.param("class_embedding", nn.initializers.normal(0.02), (cfg.width,))
        table = Embed(
            1 + side * side,
            cfg.width,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="position_embedding",
        )
        positions = table(jnp.arange(1 + side * side))
        if grid != (side, side):
            positions = _resize_positions(positions, side, grid)
        first = jnp.broadcast_to(token.astype(self.dtype)[None, None], (b, 1, cfg.width))
        patches = patches.reshape(b, -1, cfg.width)
        return jnp.concatenate([first, patches], axis=1) + positions[None]


def _resize_positions(positions: jax.Array, side: int, grid: tuple[int, int]) -> jax.Array:
    """Positions [1 + side*side, C] -> [1 + grid, C]: bicubic, transformers' way for other sizes."""
    width = positions.shape[-1]
    plane = positions[1:].reshape(1, side, side, width)
    rows, columns = (cubic_matrix(side, n, a=-0.75, antialias=False) for n in grid)
    plane = apply_columns(columns, apply_rows(rows, plane)).reshape(-1, width)
    return jnp.concatenate([positions[:1], plane.astype(positions.dtype)])


class VisionEncoder(nn.Module):
    """CLIP-normalised pixels [B, H, W, 3] (see `preprocess`) -> `VisionOutput`.

    Images of another size than `cfg.image_size` get resized positions.

    Raises:
        ValueError: an image smaller than one patch, or an unknown activation.
    """

    cfg: VisionConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: jax.Array) -> VisionOutput:
        cfg = self.cfg
        x = VisionEmbeddings(cfg, self.dtype, name="embeddings")(pixels.astype(self.dtype))
        x = LayerNorm(cfg.layer_norm_eps, name="pre_layrnorm")(x)  # transformers' own spelling
        states = Encoder(cfg, causal=False, dtype=self.dtype, name="encoder")(x)
        pooled = LayerNorm(cfg.layer_norm_eps, name="post_layernorm")(states[-1][:, 0])
        embeds = None
        if cfg.projection is not None:
            project = dense(cfg.projection, name="visual_projection", dtype=self.dtype, bias=False)
            embeds = project(pooled)
        return VisionOutput(states, pooled, embeds)


def preprocess(image: jax.Array, size: int, *, quantise: bool = False) -> jax.Array:
    """Any image -> what CLIP was trained on, as transformers' CLIPImageProcessor makes it.

    The shorter side becomes `size` (bicubic, antialiased), the middle square is kept, and the
    channels are normalised by CLIP's means and deviations.

    Args:
        image: [B, H, W, 3] RGB in [-1, 1].
        size: side in pixels, the encoder's `image_size`.
        quantise: round to whole grey levels before, between and after the two passes as PIL
            does, for pixels equal to its. Rounding has no gradient and turns a tiny
            difference of inputs into a whole level, so it is off by default.

    Returns:
        fp32 [B, size, size, 3], normalised.
    """
    levels = (jnp.clip(image.astype(jnp.float32), -1.0, 1.0) + 1.0) * 127.5

    def settle(x: jax.Array) -> jax.Array:
        x = jnp.clip(x, 0.0, 255.0)
        return jnp.floor(x + 0.5) if quantise else x

    levels = settle(levels)
    height, width = image.shape[1:3]
    scaled = [max(size, size * side // min(height, width)) for side in (height, width)]
    rows, columns = (
        _cropped(cubic_matrix(side, to), size) for side, to in zip((height, width), scaled)
    )
    if scaled[1] != width:  # PIL passes over the rows first, and skips an axis that keeps its size
        levels = settle(apply_columns(columns, levels))
    else:
        levels = _crop(levels, size, axis=2)
    if scaled[0] != height:
        levels = settle(apply_rows(rows, levels))
    else:
        levels = _crop(levels, size, axis=1)
    mean, std = (jnp.asarray(v, jnp.float32)[None, None, None] for v in (_MEAN, _STD))
    return (levels / 255.0 - mean) / std


def _cropped(matrix: np.ndarray, size: int) -> np.ndarray:
    """The middle `size` rows of a resizing matrix: crop and resize at once."""
    start = (matrix.shape[0] - size) // 2
    return matrix[start : start + size]


def _crop(x: jax.Array, size: int, axis: int) -> jax.Array:
    start = (x.shape[axis] - size) // 2
    return jax.lax.slice_in_dim(x, start, start + size, axis=axis)
