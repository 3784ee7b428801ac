"""SD1.5's and SDXL's UNets, the video UNet and ControlNet, in torch and here.

Inputs are in this package's layout (channels last, [B, T, H, W, C]); what torch is given is turned.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mv2_jax.config import ControlNetConfig, MotionConfig, UNetConfig
from mv2_jax.convert import sources
from mv2_jax.convert.beside.case import Case, filled, last, noise, shapes
from mv2_jax.convert.tables import controlnet, motion, unet
from mv2_jax.models.controlnet import ControlNet
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context

SIZES = np.array([[1024, 1024, 0, 0, 1024, 1024]], np.float32)
TOKENS = 77


def narrow(cfg: UNetConfig) -> UNetConfig:
    """The same network with a tenth of the channels; one that is narrow stays as it is."""
    if cfg.channels[0] < 320:
        return cfg
    return dataclasses.replace(
        cfg,
        channels=tuple(width // 10 for width in cfg.channels),
        heads=tuple(min(heads, 4) for heads in cfg.heads),
        context_width=64,
        pooled_width=None if cfg.pooled_width is None else 64,
        motion=cfg.motion and dataclasses.replace(cfg.motion, heads=4),
    )


def unet_shape(cfg: UNetConfig) -> dict[str, Any]:
    """What diffusers' UNets and ControlNets all take of a config."""
    levels = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in cfg.transformers]
    shape: dict[str, Any] = dict(
        in_channels=cfg.in_channels,
        out_channels=cfg.out_channels,
        block_out_channels=cfg.channels,
        down_block_types=levels,
        layers_per_block=cfg.layers_per_block,
        transformer_layers_per_block=[max(depth, 1) for depth in cfg.transformers],
        cross_attention_dim=cfg.context_width,
        norm_num_groups=cfg.norm_groups,
        use_linear_projection=cfg.linear_projection,
    )
    if cfg.pooled_width is not None:
        shape |= dict(
            addition_embed_type="text_time",
            addition_time_embed_dim=cfg.size_ids_width,
            projection_class_embeddings_input_dim=cfg.pooled_width + 6 * cfg.size_ids_width,
        )
    return shape


def ups(levels: list[str]) -> list[str]:
    """The names of the blocks on the way up."""
    return [name.replace("Down", "Up") for name in reversed(levels)]


def inputs_of(cfg: UNetConfig, frames: int, side: int) -> dict[str, np.ndarray]:
    """Noisy latents, a timestep, text, and SDXL's rest."""
    given = {
        "x": noise(1, frames, side, side, cfg.in_channels),
        "t": np.array([681], np.int32),
        "text": noise(1, TOKENS, cfg.context_width, seed=1),
    }
    if cfg.pooled_width is not None:
        given |= {"pooled": noise(1, cfg.pooled_width, seed=2), "size_ids": SIZES}
    return given


def unet_target(cfg: UNetConfig, given: dict[str, np.ndarray]) -> Any:
    """The abstract tree of our UNet."""
    image = noise(1, 16, cfg.context_width) if cfg.image_tokens else None
    added = {name: given[name] for name in ("pooled", "size_ids") if name in given}
    return shapes(UNet(cfg), given["x"], given["t"], Context(given["text"], image, **added))


def picture(cfg: UNetConfig, side: int, small: bool) -> Case:
    """The spatial UNet on one picture's latents."""
    cfg, side = (narrow(cfg), side // 4) if small else (cfg, side)
    given = functools.partial(inputs_of, cfg, 1, side)

    def make() -> Any:
        import diffusers

        shape = unet_shape(cfg)
        up = ups(shape["down_block_types"])
        return diffusers.UNet2DConditionModel(
            up_block_types=up, attention_head_dim=cfg.heads, **shape
        )

    def theirs(module: Any, given: dict[str, Any]) -> list[Any]:
        added = None
        if "pooled" in given:
            added = {"text_embeds": given["pooled"], "time_ids": given["size_ids"]}
        x = given["x"][:, 0].permute(0, 3, 1, 2)
        out = module(x, given["t"], given["text"], added_cond_kwargs=added).sample
        return [last(out)[:, None]]

    def ours(dtype: Any, params: Any, given: dict[str, Any]) -> list[jax.Array]:
        added = {name: given[name] for name in ("pooled", "size_ids") if name in given}
        context = Context(given["text"], **added)
        return [UNet(cfg, dtype).apply({"params": params}, given["x"], given["t"], context)]

    def fill(folder: Path) -> Any:
        return filled(sources.load(folder), unet.rules(cfg), unet_target(cfg, given()))

    return Case(make, given, theirs, ours, fill)


def video(
    mid_block: bool,
    scope: str,
    small: bool,
    spatial: UNetConfig | None = None,
    side: int = 64,
) -> Case:
    """SD1.5 (or another UNet) with motion modules on eight frames, in diffusers.

    `scope` is of the modules' norms: "clip" is diffusers as it is, "frame" diffusers changed so
    that they see single frames, as in AnimateDiff's own code (which `animatediff.original` runs).
    """
    motion_cfg = MotionConfig(mid_block=mid_block, norm_scope=scope)
    cfg = dataclasses.replace(spatial or UNetConfig(), motion=motion_cfg)
    cfg, side = (narrow(cfg), 9) if small else (cfg, side)
    given = functools.partial(inputs_of, cfg, 8, side)

    def make() -> Any:
        import diffusers

        shape = unet_shape(cfg)
        down = [name.replace("2D", "Motion") for name in shape.pop("down_block_types")]
        return diffusers.UNetMotionModel(
            down_block_types=down,
            up_block_types=ups(down),
            num_attention_heads=cfg.heads,
            motion_num_attention_heads=cfg.motion.heads,
            motion_max_seq_length=cfg.motion.max_frames,
            use_motion_mid_block=mid_block,
            **shape,
        )

    def theirs(module: Any, given: dict[str, Any]) -> list[Any]:
        if scope == "frame":
            normalise_frames_alone(module)
        x = given["x"].permute(0, 4, 1, 2, 3)
        text = given["text"].repeat_interleave(x.shape[2], 0)
        return [module(x, given["t"], text).sample.permute(0, 2, 3, 4, 1)]

    def ours(dtype: Any, params: Any, given: dict[str, Any]) -> list[jax.Array]:
        context = Context(given["text"])
        return [UNet(cfg, dtype).apply({"params": params}, given["x"], given["t"], context)]

    def fill(folder: Path) -> Any:
        table = [*unet.rules(cfg), *motion.diffusers()]
        return filled(sources.load(folder), table, unet_target(cfg, given()))

    return Case(make, given, theirs, ours, fill)


def normalise_frames_alone(module: Any) -> None:
    """Changes the norms of diffusers' motion modules to AnimateDiff's: over each frame alone."""
    import torch

    class PerFrame(torch.nn.GroupNorm):
        def forward(self, x: Any) -> Any:
            frames = super().forward(x.transpose(1, 2).flatten(0, 1))
            return frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)

    for name, part in module.named_modules():
        if ".motion_modules." in name and name.endswith(".norm"):
            part.__class__ = PerFrame


def tile(small: bool) -> Case:
    """ControlNet tile's shape: residuals from a picture eight times the latents' plane."""
    cfg, side = ControlNetConfig(), 64
    if small:
        cfg, side = ControlNetConfig(narrow(UNetConfig())), 9

    def given() -> dict[str, np.ndarray]:
        pixels = np.random.default_rng(3).random((1, 8 * side, 8 * side, 3), np.float32)
        return {**inputs_of(cfg.unet, 1, side), "pixels": pixels}

    def make() -> Any:
        import diffusers

        return diffusers.ControlNetModel(attention_head_dim=cfg.unet.heads, **unet_shape(cfg.unet))

    def theirs(module: Any, given: dict[str, Any]) -> list[Any]:
        pixels = given["pixels"].permute(0, 3, 1, 2)
        x = given["x"][:, 0].permute(0, 3, 1, 2)
        down, middle = module(
            x, given["t"], given["text"], controlnet_cond=pixels, return_dict=False
        )
        return [last(x) for x in (*down, middle)]

    def ours(dtype: Any, params: Any, given: dict[str, Any]) -> list[jax.Array]:
        context = Context(given["text"])
        args = (given["x"], given["t"], context, given["pixels"])
        down, middle = ControlNet(cfg, dtype).apply({"params": params}, *args)
        return [*down, middle]

    def fill(folder: Path) -> Any:
        some = given()
        args = (some["x"], some["t"], Context(some["text"]), some["pixels"])
        target = shapes(ControlNet(cfg), *args)
        return filled(sources.load(folder), controlnet.rules(cfg), target)

    return Case(make, given, theirs, ours, fill)
