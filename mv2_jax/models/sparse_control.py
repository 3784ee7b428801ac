"""SparseCtrl (arXiv 2311.16933): residuals for a video UNet from a few given frames.

This is its RGB encoder: what is given are latents, with a mask that says at which frames, and
motion modules carry them to the others. Its body is the UNet's first half (`unet.encode`); names
and numerics follow diffusers' SparseControlNetModel.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mv2_jax.config import SparseControlConfig
from mv2_jax.models.controlnet import outlets
from mv2_jax.models.unet import embed_time, encode
from mv2_jax.nn.layers import Dtype, conv
from mv2_jax.nn.transformer import Context


class SparseControlNet(nn.Module):
    """condition [B, T, h, w, C], mask [B, T], t [B], context -> (skip residuals, mid residual).

    `condition` holds scaled latents at the frames where `mask` is 1; elsewhere both are 0 (the
    condition is not masked again here). `scale` (scalar, [B] or [B, T]) multiplies every residual.
    Residuals are [B*T, h, w, c], outermost first, as `ControlNet`'s. They are zero at
    initialisation.

    The noisy sample is no argument: the published encoder sees zeros in its place, so that the
    noise cannot hide what is given (section 3.2 of the paper).

    Raises:
        ValueError: a mask that does not name the condition's frames, a body without motion
            modules (given frames would reach no others), or with image tokens.
    """

    cfg: SparseControlConfig
    dtype: Dtype = jnp.float32
    remat: str | bool = False

    @nn.compact
    def __call__(
        self,
        condition: jax.Array,
        mask: jax.Array,
        t: jax.Array,
        context: Context,
        scale: jax.Array | float = 1.0,
    ) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
        unet, dtype = self.cfg.unet, self.dtype
        if unet.motion is None or unet.image_tokens:
            raise ValueError("SparseCtrl's body has motion modules and no image tokens")
        b, frames, h, w, _ = condition.shape
        if mask.shape != (b, frames):
            raise ValueError(
                f"the mask is {list(mask.shape)}; for {b} clips of {frames} frames it must be "
                f"[{b}, {frames}], one number a frame"
            )
        temb = embed_time(unet, dtype, t, context, frames)
        plane = jnp.broadcast_to(mask[..., None, None, None], (b, frames, h, w, 1))
        given = jnp.concatenate([condition, plane.astype(condition.dtype)], axis=-1)
        given = given.reshape(b * frames, h, w, -1).astype(dtype)
        nothing = jnp.zeros((1, h, w, unet.in_channels), dtype)
        y = conv(unet.channels[0], name="conv_in", dtype=dtype)(nothing)
        hint = conv(unet.channels[0], name="controlnet_cond_embedding", dtype=dtype, zero=True)
        y = jnp.broadcast_to(y, (b * frames, *y.shape[1:])) + hint(given)
        middle, skips = encode(unet, dtype, y, temb, context, self.remat)
        return outlets(dtype, skips, middle, scale, frames)


def given_frames(
    latents: jax.Array, positions: tuple[int, ...], frames: int
) -> tuple[jax.Array, jax.Array]:
    """`SparseControlNet`'s condition and mask, from the latents of some frames of a clip.

    Args:
        latents: scaled latents [B, K, h, w, C] of the given frames.
        positions: where in the clip each of the K is, counted from 0.
        frames: the clip's length T.

    Returns:
        condition [B, T, h, w, C] and mask [B, T], in the latents' type.

    Raises:
        ValueError: positions that are not K different ones of 0..T-1.
    """
    inside = all(0 <= position < frames for position in positions)
    if len(positions) != latents.shape[1] or len(set(positions)) != len(positions) or not inside:
        raise ValueError(
            f"{latents.shape[1]} given frames need as many different positions in "
            f"0..{frames - 1}, not {list(positions)}"
        )
    b, _, *plane = latents.shape
    index = jnp.asarray(positions)
    condition = jnp.zeros((b, frames, *plane), latents.dtype).at[:, index].set(latents)
    mask = jnp.zeros((b, frames), latents.dtype).at[:, index].set(1)
    return condition, mask
