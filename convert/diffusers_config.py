"""Configs as diffusers and transformers write them: what exported folders and references need.

Each function gives (class name, settings). What those libraries cannot express is refused: the
toybox's networks, whose pixels are folded into channels, for one.
"""

from __future__ import annotations

from typing import Any

from mv2_jax.config import (
    ControlNetConfig,
    ImageProjectionConfig,
    MotionConfig,
    SparseControlConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
    VisionConfig,
)
from mv2_jax.convert.engine import Table
from mv2_jax.convert.kind import Layout
from mv2_jax.errors import InputError

Published = tuple[str, dict[str, Any]]
_DIFFUSERS, _TRANSFORMERS = "diffusion_pytorch_model.safetensors", "model.safetensors"
_VERSION = "0.38.0"  # the oldest diffusers that this layout was read with


def diffusers(table: Table, settings: Published) -> Layout:
    """A folder of diffusers' for a network whose tensors `table` names."""
    name, values = settings
    values = {"_class_name": name, "_diffusers_version": _VERSION, **values}
    return Layout(table, _DIFFUSERS, values)


def transformers(table: Table, settings: Published, kind: str) -> Layout:
    """A folder of transformers', likewise."""
    name, values = settings
    return Layout(table, _TRANSFORMERS, {"architectures": [name], "model_type": kind, **values})


def unet(cfg: UNetConfig) -> Published:
    """UNet2DConditionModel, without motion and image tokens. Raises InputError as the module."""
    settings = _body(cfg)
    down = settings["down_block_types"]
    settings |= {
        "out_channels": cfg.out_channels,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
    }
    return "UNet2DConditionModel", settings


def controlnet(cfg: ControlNetConfig) -> Published:
    """ControlNetModel, or ControlNetUnionModel."""
    _only(cfg, "condition_patch", 1)
    widths = list(cfg.condition_channels)
    settings = {
        **_body(cfg.unet),
        "conditioning_embedding_out_channels": widths,
        "controlnet_conditioning_channel_order": "rgb",
        "global_pool_conditions": cfg.global_pool,
    }
    if not cfg.types:
        return "ControlNetModel", settings
    width = cfg.unet.channels[0]
    return "ControlNetUnionModel", {
        **settings,
        "addition_time_embed_dim": cfg.unet.size_ids_width,
        "num_control_type": cfg.types,
        "num_trans_channel": width,
        "num_trans_head": 8,
        "num_trans_layer": cfg.type_layers,
        "num_proj_channel": width,
    }


def sparse_control(cfg: SparseControlConfig) -> Published:
    """SparseControlNetModel, whose norms diffusers takes over whole clips (see `motion`)."""
    body, moving = cfg.unet, cfg.unet.motion
    _only(moving, "attentions", 1)
    _only(moving, "layers", 1)
    _only(moving, "norm_groups", body.norm_groups)
    settings = _body(body)
    settings["down_block_types"] = [
        name.replace("2D", "Motion") for name in settings["down_block_types"]
    ]
    return "SparseControlNetModel", {
        **settings,
        "conditioning_channels": cfg.condition_channels,
        "motion_max_seq_length": moving.max_frames,
        "motion_num_attention_heads": moving.heads,
        "concat_conditioning_mask": True,
        "use_simplified_condition_embedding": True,
    }


def motion(cfg: MotionConfig, unet: UNetConfig) -> Published:
    """MotionAdapter, for a UNet of this shape.

    diffusers knows no scope of norms: it normalises over whole clips whatever the weights want.
    """
    _only(cfg, "attentions", 2)
    _only(cfg, "mlp_ratio", 4)
    return "MotionAdapter", {
        "block_out_channels": list(unet.channels),
        "motion_layers_per_block": unet.layers_per_block,
        "motion_mid_block_layers_per_block": 1,
        "motion_transformer_layers_per_block": cfg.layers,
        "motion_transformer_layers_per_mid_block": cfg.layers,
        "motion_num_attention_heads": cfg.heads,
        "motion_norm_num_groups": cfg.norm_groups,
        "motion_max_seq_length": cfg.max_frames,
        "use_motion_mid_block": cfg.mid_block,
        "conv_in_channels": None,
    }


def adapter(cfg: ImageProjectionConfig) -> None:
    """Refuses an IP-Adapter that diffusers' loader cannot make: it reads no depth and no width of
    heads from a file, but takes those that were published."""
    if cfg.kind == "resampler":
        for name in ("depth", "head_width", "mlp_ratio"):
            _only(cfg, name, getattr(ImageProjectionConfig, name))


def vae(cfg: VAEConfig) -> Published:
    """AutoencoderKL."""
    for name in ("patch_size", "latent_patch"):
        _only(cfg, name, 1)
    _only(cfg, "shortcuts", False)
    _only(cfg, "decoder_channels", ())
    levels = len(cfg.channels)
    return "AutoencoderKL", {
        "in_channels": cfg.in_channels,
        "out_channels": cfg.in_channels,
        "latent_channels": cfg.latent_channels,
        "block_out_channels": list(cfg.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": cfg.layers_per_block,
        "norm_num_groups": cfg.norm_groups,
        "mid_block_add_attention": cfg.mid_attention,
        "scaling_factor": cfg.scaling_factor,
        "shift_factor": cfg.shift_factor or None,
        "force_upcast": True,
        "act_fn": "silu",
    }


def text(cfg: TextConfig) -> Published:
    """transformers' CLIPTextModel, with or without its projection."""
    name = "CLIPTextModelWithProjection" if cfg.projection else "CLIPTextModel"
    return name, {
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.max_length,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "intermediate_size": cfg.mlp_width,
        "hidden_act": cfg.activation,
        "projection_dim": cfg.projection or cfg.width,
        "eos_token_id": cfg.eos_token_id,
        "bos_token_id": cfg.vocab_size - 2,
        "pad_token_id": 1,
        "layer_norm_eps": cfg.layer_norm_eps,
    }


def vision(cfg: VisionConfig) -> Published:
    """transformers' CLIPVisionModel, with or without its projection."""
    name = "CLIPVisionModelWithProjection" if cfg.projection else "CLIPVisionModel"
    return name, {
        "image_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "intermediate_size": cfg.mlp_width,
        "hidden_act": cfg.activation,
        "projection_dim": cfg.projection or cfg.width,
        "layer_norm_eps": cfg.layer_norm_eps,
    }


def _body(cfg: UNetConfig) -> dict[str, Any]:
    """What a UNet and a ControlNet share."""
    # diffusers gives the middle the last level's depth, whether that level has transformers or not.
    depths = [depth or 1 for depth in cfg.transformers]
    if cfg.transformers[-1] == 0:
        depths[-1] = cfg.mid_transformers
    if depths[-1] != cfg.mid_transformers or not cfg.mid_transformers:
        raise InputError(
            f"diffusers cannot have {cfg.mid_transformers} transformer layers in the middle of a "
            f"UNet whose last level has {cfg.transformers[-1]}"
        )
    added = {}
    if cfg.pooled_width is not None:
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": cfg.size_ids_width,
            "projection_class_embeddings_input_dim": cfg.pooled_width + 6 * cfg.size_ids_width,
        }
    return {
        **added,
        "in_channels": cfg.in_channels,
        "block_out_channels": list(cfg.channels),
        "layers_per_block": cfg.layers_per_block,
        "down_block_types": [
            "CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in cfg.transformers
        ],
        "transformer_layers_per_block": depths,
        # Its name for the number of heads.
        "attention_head_dim": list(cfg.heads),
        "cross_attention_dim": cfg.context_width,
        "norm_num_groups": cfg.norm_groups,
        "use_linear_projection": cfg.linear_projection,
    }


def _only(cfg: Any, name: str, value: Any) -> None:
    if getattr(cfg, name) != value:
        raise InputError(
            f"PyTorch's libraries have no network with {name} {getattr(cfg, name)} (only {value})"
        )
