"""The diffusion UNet: Stable Diffusion's, inflated over time, with image cross-attention.

One module is T2I's, I2V's and V2V's network; what a config switches on (motion modules, image
tokens) adds parameters beside the spatial ones and never changes those. Names and numerics follow
diffusers' UNet2DConditionModel. `encode` is shared with the ControlNet, whose body is a copy of
the UNet's first half.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mv2_jax import params as trees
from mv2_jax import shards
from mv2_jax.config import MotionConfig, UNetConfig
from mv2_jax.diffusion import keys
from mv2_jax.nn.layers import Dtype, EmbeddingMLP, GroupNorm, conv, sinusoid
from mv2_jax.nn.motion import MotionModule, frames_together
from mv2_jax.nn.resnet import Downsample, ResnetBlock, Upsample
from mv2_jax.nn.transformer import Context, SpatialTransformer
from mv2_jax.params import Tree

# What the backward pass computes again, for memory: whole levels; each unit of a resnet,
# transformer and motion module; or of the units all but the products of matrices, which are kept.
REMAT = ("levels", "units", "dots")


def recomputed(
    target: Any, remat: str | bool, ways: tuple[str, ...], static: tuple[int, ...] = ()
) -> Any:
    """A module's class, or a function of a module, that the backward pass computes again where
    `remat` (one of `REMAT`; True is "units") is among `ways`."""
    remat = "units" if remat is True else remat
    if remat not in ways:
        return target
    kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return nn.remat(target, static_argnums=static, policy=kept)


class Level(nn.Module):
    """One resolution of the UNet: resnets, each with its transformer and motion module.

    Down (`skips` None): `layers` units, then a stride-2 convolution unless it is the last level;
    returns the state and every intermediate for the way up.
    Up: each unit takes a skip off the end of `skips`; `size` is the plane to upsample to. The
    units before the `first` are left out.
    States are [B*T, H, W, C].
    """

    cfg: UNetConfig
    index: int  # counted from the outermost
    layers: int
    resample: str | None  # "down", "up" or None
    dtype: Dtype
    remat: str | bool = False  # see `REMAT`
    first: int = 0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        temb: jax.Array,
        context: Context,
        skips: tuple[jax.Array, ...] | None = None,
        size: tuple[int, int] | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        width, made = self.cfg.channels[self.index], []
        unit = recomputed(Level.unit, self.remat, ("units", "dots"), static=(5,))
        for j in range(self.first, self.layers):
            skip = None if skips is None else skips[self.first - 1 - j]
            x = unit(self, x, temb, context, skip, j)
            made.append(x)
        if self.resample == "down":
            x = Downsample(width, dtype=self.dtype, name="downsamplers_0")(x)
            made.append(x)
        elif self.resample == "up":
            x = Upsample(width, self.dtype, name="upsamplers_0")(x, size)
        return x, tuple(made)

    def unit(
        self, x: jax.Array, temb: jax.Array, context: Context, skip: jax.Array | None, j: int
    ) -> jax.Array:
        """Resnet, transformer and motion module number j, after a skip on the way up."""
        cfg, width = self.cfg, self.cfg.channels[self.index]
        if skip is not None:
            x = jnp.concatenate([x, skip.astype(x.dtype)], axis=-1)
        x = resnet(cfg, width, self.dtype, x, temb, context, f"resnets_{j}")
        if cfg.transformers[self.index]:
            x = SpatialTransformer(
                cfg.heads[self.index],
                cfg.transformers[self.index],
                cfg.norm_groups,
                cfg.image_tokens,
                self.dtype,
                name=f"attentions_{j}",
            )(x, context)
        if cfg.motion is not None:
            x = over_time(x, context, cfg.motion, self.dtype, f"motion_modules_{j}")
        return x


class MidBlock(nn.Module):
    """Resnet, transformer, (motion module,) resnet at the innermost resolution."""

    cfg: UNetConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, context: Context) -> jax.Array:
        cfg, width = self.cfg, self.cfg.channels[-1]
        x = resnet(cfg, width, self.dtype, x, temb, context, "resnets_0")
        if cfg.mid_transformers:
            x = SpatialTransformer(
                cfg.heads[-1],
                cfg.mid_transformers,
                cfg.norm_groups,
                cfg.image_tokens,
                self.dtype,
                name="attentions_0",
            )(x, context)
        if cfg.motion is not None and cfg.motion.mid_block:
            x = over_time(x, context, cfg.motion, self.dtype, "motion_modules_0")
        return resnet(cfg, width, self.dtype, x, temb, context, "resnets_1")


def resnet(
    cfg: UNetConfig,
    width: int,
    dtype: Dtype,
    x: jax.Array,
    temb: jax.Array,
    context: Context,
    name: str,
) -> jax.Array:
    """A residual block on states [B*T, H, W, C] -> [B*T, H, W, width]."""
    frames = normalised_together(cfg, x, context)
    block = ResnetBlock(width, cfg.norm_groups, 1e-5, dtype, frames=frames, name=name)
    return block(x, temb)


def normalised_together(cfg: UNetConfig, x: jax.Array, context: Context) -> int:
    """How many rows of x [B*T, ...] the resnets' norms take at once: one, or a clip's T."""
    if cfg.motion is None:
        return 1
    here = x.shape[0] // context.text.shape[0]
    return frames_together(cfg.motion.resnet_norm_scope, shards.frames(here))


def over_time(
    x: jax.Array, context: Context, cfg: MotionConfig, dtype: Dtype, name: str
) -> jax.Array:
    """A motion module on states [B*T, H, W, C], B told by the context's batch."""
    batch = context.text.shape[0]
    clip = x.reshape(batch, x.shape[0] // batch, *x.shape[1:])
    return MotionModule(cfg, dtype, name=name)(clip, context.motion_scale).reshape(x.shape)


def embed_time(
    cfg: UNetConfig, dtype: Dtype, t: jax.Array, context: Context, frames: int
) -> jax.Array:
    """Timesteps [B] (and SDXL's pooled text and sizes) -> for each frame [B * T, 4 * channels[0]].

    Call it inside a compact module; it owns `time_embedding` and `add_embedding` there.
    """
    width = 4 * cfg.channels[0]
    temb = EmbeddingMLP(width, dtype, name="time_embedding")(sinusoid(t, cfg.channels[0]))
    if cfg.pooled_width is None:
        return jnp.repeat(temb, frames, axis=0)
    pooled, size_ids = context.pooled, context.size_ids
    if pooled is None or size_ids is None:
        raise ValueError("this network (SDXL) needs pooled text [B, P] and size_ids [B, 6]")
    sizes = sinusoid(size_ids, cfg.size_ids_width).reshape(size_ids.shape[0], -1)
    if pooled.ndim == 3:  # one a frame
        pooled = pooled.reshape(-1, pooled.shape[-1])
        temb, sizes = (jnp.repeat(x, frames, axis=0) for x in (temb, sizes))
    added = jnp.concatenate([pooled.astype(jnp.float32), sizes], axis=-1)
    temb = temb + EmbeddingMLP(width, dtype, name="add_embedding")(added)
    return jnp.repeat(temb, frames * t.shape[0] // temb.shape[0], axis=0)


def encode(
    cfg: UNetConfig,
    dtype: Dtype,
    x: jax.Array,
    temb: jax.Array,
    context: Context,
    remat: str | bool,
) -> tuple[jax.Array | None, tuple[jax.Array, ...]]:
    """The down and mid blocks on x [B*T, H, W, C] after conv_in; returns mid state and skips.

    Of a step that runs the outer part alone (`context.branch`), no mid state and fewer skips.
    Call it inside a compact module; it owns `down_blocks_*` and `mid_block` there.
    """
    level = recomputed(Level, remat, ("levels",))
    skips = [x]
    deepest, units = len(cfg.channels) - 1, cfg.layers_per_block
    if context.branch is not None:
        deepest, units = place(cfg, context.branch)
    for i in range(deepest + 1):
        resample = "down" if i < len(cfg.channels) - 1 else None
        layers = cfg.layers_per_block
        if context.branch is not None and i == deepest:
            layers, resample = units, None
        if layers or resample:
            block = level(cfg, i, layers, resample, dtype, remat, name=f"down_blocks_{i}")
            x, made = block(x, temb, context)
            skips.extend(made)
    if context.branch is not None:
        return None, tuple(skips)
    mid = recomputed(MidBlock, remat, REMAT)
    return mid(cfg, dtype, name="mid_block")(x, temb, context), tuple(skips)


def place(cfg: UNetConfig, branch: int) -> tuple[int, int]:
    """The level of a skip connection, counted from the outermost, and its place in there."""
    return divmod(branch, cfg.layers_per_block + 1)


class UNet(nn.Module):
    """The denoising network.

    Call: x [B, T, H, W, C] noisy latents (T = 1 for an image), t [B] timesteps of the schedule
    (fractions allowed), and the context -> [B, T, H, W, out_channels] in x's dtype, whatever the
    schedule's prediction is. `remat`: see `REMAT`.

    With a `branch`, DeepCache's (arXiv 2312.00858), the output and the features [B*T, h, w, c] that
    the way up has where it meets the skip connection of this number, counted from the outermost.
    With such features of another step in `kept`, only what lies around them is run: the way down to
    that skip connection, and the way up from it.
    """

    cfg: UNetConfig
    dtype: Dtype = jnp.float32
    remat: str | bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        context: Context,
        branch: int | None = None,
        kept: jax.Array | None = None,
    ) -> Any:
        cfg, dtype = self.cfg, self.dtype
        b, frames, h, w, _ = x.shape
        context = context.replace(branch=None if kept is None else branch)
        residuals, context = context.residuals, context.replace(residuals=None)
        temb = embed_time(cfg, dtype, t, context, frames)
        y = x.reshape(b * frames, h, w, -1).astype(dtype)
        y = conv(cfg.channels[0], name="conv_in", dtype=dtype)(y)
        y, skips = encode(cfg, dtype, y, temb, context, self.remat)
        if residuals is not None:
            added, middle = residuals
            added = added if kept is None else added[: len(skips)]
            skips = tuple(s + r.astype(s.dtype) for s, r in zip(skips, added, strict=True))
            if kept is None:
                y = y + middle.astype(y.dtype)
        level = recomputed(Level, self.remat, ("levels",), static=(5,))
        count, last = cfg.layers_per_block + 1, len(cfg.channels) - 1
        at, left = (None, 0) if branch is None else place(cfg, branch)
        begins, features = (last if kept is None else at), kept
        y = y if kept is None else kept.astype(dtype)
        for index in range(begins, -1, -1):
            own, skips = skips[index * count :], skips[: index * count]
            size = skips[-1].shape[1:3] if skips else None
            resample = "up" if index else None
            first = count - 1 - left if index == at and kept is not None else 0
            name = f"up_blocks_{last - index}"
            block = level(cfg, index, count, resample, dtype, self.remat, first, name=name)
            before = y
            y, made = block(y, temb, context, own, size)
            if index == at and kept is None:
                features = (before, *made)[count - 1 - left]
        together = normalised_together(cfg, y, context)
        y = nn.silu(GroupNorm(cfg.norm_groups, 1e-5, together, name="conv_norm_out")(y))
        y = conv(cfg.out_channels, name="conv_out", dtype=dtype, zero=True)(y)
        y = y.reshape(b, frames, h, w, -1).astype(x.dtype)
        return y if branch is None else (y, features)


@dataclass(frozen=True)
class UNetBackbone:
    """A UNet in a stage (`models.backbone.Backbone`): its spatial weights, motion modules and the
    image tokens' attention as trees of their own."""

    cfg: UNetConfig

    own = ("motion",)
    rules = ()
    sharded = True

    @property
    def in_channels(self) -> int:
        return self.cfg.in_channels

    @property
    def frames(self) -> int | None:
        return self.cfg.motion.max_frames if self.cfg.motion else None

    @property
    def parts(self) -> tuple[str, ...]:
        motion = ("motion",) if self.cfg.motion else ()
        return ("spatial", *motion, *(("image_attn",) if self.cfg.image_tokens else ()))

    def configs(self) -> dict[str, Any]:
        spatial = dataclasses.replace(self.cfg, motion=None, image_tokens=False)
        return {"spatial": spatial, "motion": self.cfg.motion}

    def init(self, key: jax.Array, x: jax.Array, t: jax.Array, context: Context) -> Tree:
        moving = self.cfg.motion is not None or self.cfg.image_tokens
        init, name = jax.jit(UNet(self.cfg).init), "unet" if moving else "spatial"
        made = init(keys.fold(key, name), x, t, context)
        split = split_unet(made["params"])
        image = {"image_attn": {"unet": split["image_attn"]}} if self.cfg.image_tokens else {}
        motion = {"motion": split["motion"]} if self.cfg.motion else {}
        return {"spatial": split["spatial"], **motion, **image}

    def select(self, params: Tree) -> Tree:
        chosen = {name: params[name] for name in self.parts}
        if self.cfg.image_tokens:
            chosen["image_attn"] = {"unet": params["image_attn"]["unet"]}
        return chosen

    def apply(
        self,
        params: Tree,
        x: jax.Array,
        t: jax.Array,
        context: Context,
        *,
        dtype: Any = jnp.float32,
        remat: str | bool = False,
    ) -> jax.Array:
        return UNet(self.cfg, dtype, remat).apply(self._held(params), x, t, context)

    @property
    def branches(self) -> int:
        count = self.cfg.layers_per_block + 1
        return len(self.cfg.channels) * count

    def features(self, branch: int, plane: tuple[int, int]) -> tuple[int, int, int]:
        index, left = place(self.cfg, branch)
        deepest, units = len(self.cfg.channels) - 1, self.cfg.layers_per_block
        width = self.cfg.channels[index if left < units else min(index + 1, deepest)]
        h, w = (-(-side // 2**index) for side in plane)
        return h, w, width

    def apply_kept(
        self,
        params: Tree,
        x: jax.Array,
        t: jax.Array,
        context: Context,
        kept: jax.Array | None,
        branch: int,
        *,
        dtype: Any = jnp.float32,
    ) -> tuple[jax.Array, jax.Array]:
        given = x, t, context, branch
        if kept is not None:
            kept = kept.reshape(-1, *kept.shape[2:])
        out, features = UNet(self.cfg, dtype).apply(self._held(params), *given, kept)
        return out, features.reshape(*x.shape[:2], *features.shape[1:])

    def _held(self, params: Tree) -> Tree:
        held = [params["spatial"]]
        if self.cfg.motion:
            held.append(params["motion"])
        if self.cfg.image_tokens:
            held.append(params["image_attn"]["unet"])
        return {"params": trees.merge(*held)}


def split_unet(tree: Tree) -> dict[str, Tree]:
    """A whole UNet's tree as {"spatial", "motion", "image_attn"}; `params.merge` undoes it."""
    motion, rest = trees.split(tree, lambda path: "motion_modules_" in path)
    image, spatial = trees.split(rest, lambda path: re.search(r"/to_[kv]_ip/", path) is not None)
    return {"spatial": spatial, "motion": motion, "image_attn": image}
