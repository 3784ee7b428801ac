"""Configs of networks from the names and shapes of their tensors, in diffusers' names.

What leaves no trace there comes from the source's own `config.json` where it has one, and else is
what every published checkpoint of that shape has: 8 attention heads in Stable Diffusion 1.x, heads
of width 64 in SD2, SDXL and CLIP's text encoders, 32 norm groups. A config that asks for something
these networks cannot do is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
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
from mv2_jax.convert.tables import motion
from mv2_jax.errors import InputError


class Missing(InputError):
    """A tensor that every network of its kind has is not there."""


Shapes = Mapping[str, tuple[int, ...]]
Settings = Mapping[str, Any]

# Settings of diffusers' config.json that the networks here have in one form alone.
_UNET_FORMS: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "norm_eps": (1e-5,),
    "only_cross_attention": (False, None),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_type": ("positional",),
}
_VAE_FORMS: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
}
_VISION_HEADS = {768: 12, 1024: 16, 1280: 16, 1664: 16}  # CLIP ViT-B, L, H and bigG


def unet(shapes: Shapes, settings: Settings) -> UNetConfig:
    """The config of a spatial UNet, or of the half of one in a ControlNet."""
    _forms(settings, _UNET_FORMS, "this UNet")
    levels = max(1, _count(shapes, "down_blocks.{}.resnets.0.conv1.weight"))
    downs = [f"down_blocks.{i}" for i in range(levels)]
    channels = tuple(_get(shapes, f"{down}.resnets.0.conv1.weight", 4)[0] for down in downs)
    depth = "{}.attentions.0.transformer_blocks.{{}}.norm1.weight"
    transformers = tuple(_count(shapes, depth.format(down)) for down in downs)
    projections = [s for name, s in shapes.items() if name.endswith(".attentions.0.proj_in.weight")]
    linear = bool(projections) and len(projections[0]) == 2
    contexts = {s[1] for name, s in shapes.items() if name.endswith(".attn2.to_k.weight")}
    out = _optional(shapes, "conv_out.weight", 4)  # a ControlNet has none
    added = _optional(shapes, "add_embedding.linear_1.weight", 2)
    size_width = _setting(settings, "addition_time_embed_dim", UNetConfig.size_ids_width)
    return UNetConfig(
        in_channels=_get(shapes, "conv_in.weight", 4)[1],
        out_channels=out[0] if out else UNetConfig.out_channels,
        channels=channels,
        layers_per_block=_count(shapes, "down_blocks.0.resnets.{}.conv1.weight"),
        transformers=transformers,
        mid_transformers=_count(shapes, depth.format("mid_block")),
        heads=_heads(settings, channels, linear),
        context_width=max(contexts, default=UNetConfig.context_width),
        norm_groups=_setting(settings, "norm_num_groups", UNetConfig.norm_groups),
        linear_projection=linear,
        pooled_width=added[1] - 6 * size_width if added else None,
        size_ids_width=size_width,
    )


def controlnet(shapes: Shapes, settings: Settings) -> ControlNetConfig:
    """The config of a ControlNet on pictures."""
    embedding = "controlnet_cond_embedding"
    widths = [_get(shapes, f"{embedding}.conv_in.weight", 4)[0]]
    # Every second convolution widens and halves the plane.
    for k in range(1, _count(shapes, f"{embedding}.blocks.{{}}.weight"), 2):
        widths.append(_get(shapes, f"{embedding}.blocks.{k}.weight", 4)[0])
    if settings.get("controlnet_conditioning_channel_order", "rgb") != "rgb":
        raise InputError("this ControlNet takes its pictures' channels in another order than RGB")
    pooled = bool(settings.get("global_pool_conditions", False))
    body, types, layers = unet(shapes, settings), 0, 0
    if "task_embedding" in shapes:
        types = _get(shapes, "task_embedding", 2)[0]
        layers = _count(shapes, "transformer_layes.{}.attn.in_proj_weight")
        told = _get(shapes, "control_add_embedding.linear_1.weight", 2)[1]
        if told != types * body.size_ids_width:
            raise InputError(f"this ControlNet Union is told of {types} kinds by {told} numbers")
    return ControlNetConfig(
        body, tuple(widths), global_pool=pooled, types=types, type_layers=layers
    )


def sparse_control(shapes: Shapes, settings: Settings) -> SparseControlConfig:
    """The config of SparseCtrl's encoder of given frames' latents."""
    plain = unet(shapes, settings)
    # Its motion modules take the body's own number of norm groups.
    moving = motion_modules(shapes, {**settings, "motion_norm_num_groups": plain.norm_groups})
    body = dataclasses.replace(plain, motion=moving)
    channels = _get(shapes, "controlnet_cond_embedding.weight", 4)[1] - 1  # the mask is the last
    return SparseControlConfig(body, channels)


def motion_modules(shapes: Shapes, settings: Settings) -> MotionConfig:
    """The config of motion modules. Raises ValueError where there are none of a known layout."""
    cfg = motion.describe(shapes)
    # A UNetMotionModel has one number of groups for all of its norms.
    whole = settings.get("_class_name") == "UNetMotionModel"
    groups = "norm_num_groups" if whole else "motion_norm_num_groups"
    return dataclasses.replace(
        cfg,
        heads=_setting(settings, "motion_num_attention_heads", cfg.heads),
        norm_groups=_setting(settings, groups, cfg.norm_groups),
    )


def vae(shapes: Shapes, settings: Settings, scaling_factor: float) -> VAEConfig:
    """The config of an autoencoder; `scaling_factor` where the settings are silent."""
    _forms(settings, _VAE_FORMS, "this VAE")
    _needs(shapes, "encoder.conv_in.weight", "decoder.conv_in.weight")
    levels = max(1, _count(shapes, "encoder.down_blocks.{}.resnets.0.conv1.weight"))
    return VAEConfig(
        in_channels=_get(shapes, "encoder.conv_in.weight", 4)[1],
        latent_channels=_get(shapes, "decoder.conv_in.weight", 4)[1],
        channels=tuple(
            _get(shapes, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 4)[0]
            for i in range(levels)
        ),
        layers_per_block=_count(shapes, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
        norm_groups=_setting(settings, "norm_num_groups", VAEConfig.norm_groups),
        mid_attention="encoder.mid_block.attentions.0.group_norm.weight" in shapes,
        scaling_factor=_number(settings, "scaling_factor", scaling_factor),
        shift_factor=_number(settings, "shift_factor", 0.0),
    )


def text(shapes: Shapes, settings: Settings, inner: str) -> TextConfig:
    """The config of transformers' CLIP text encoder whose names start with `inner`."""
    settings = {**settings, **settings.get("text_config", {})}
    vocabulary, width = _get(shapes, f"{inner}embeddings.token_embedding.weight", 2)
    layer = f"{inner}encoder.layers.{{}}.mlp.fc1.weight"
    projection = _optional(shapes, "text_projection.weight", 2)
    # OpenAI's ViT-L alone has this width in the public checkpoints, and its own activation.
    activation = "quick_gelu" if width == 768 else "gelu"
    return TextConfig(
        vocab_size=vocabulary,
        max_length=_get(shapes, f"{inner}embeddings.position_embedding.weight", 2)[0],
        width=width,
        layers=_count(shapes, layer),
        heads=_setting(settings, "num_attention_heads", max(1, width // 64)),
        mlp_width=_get(shapes, layer.format(0), 2)[0],
        activation=settings.get("hidden_act", activation),
        projection=projection[0] if projection else None,
        eos_token_id=settings.get("eos_token_id", TextConfig.eos_token_id),
        layer_norm_eps=_number(settings, "layer_norm_eps", TextConfig.layer_norm_eps),
    )


def open_clip_text(shapes: Shapes) -> TextConfig:
    """The config of OpenCLIP's text tower (ViT-H, bigG; OpenAI's own in that layout)."""
    vocabulary, width = _get(shapes, "token_embedding.weight", 2)
    layer = "transformer.resblocks.{}.mlp.c_fc.weight"
    projection = _optional(shapes, "text_projection", 2)
    return TextConfig(
        vocab_size=vocabulary,
        max_length=_get(shapes, "positional_embedding", 2)[0],
        width=width,
        layers=_count(shapes, layer),
        heads=max(1, width // 64),
        mlp_width=_get(shapes, layer.format(0), 2)[0],
        activation="quick_gelu" if width == 768 else "gelu",
        projection=projection[1] if projection else None,
    )


def vision(shapes: Shapes, settings: Settings, inner: str) -> VisionConfig:
    """The config of transformers' CLIP vision encoder whose names start with `inner`."""
    settings = {**settings, **settings.get("vision_config", {})}
    width, _, patch, _ = _get(shapes, f"{inner}embeddings.patch_embedding.weight", 4)
    positions = _get(shapes, f"{inner}embeddings.position_embedding.weight", 2)[0]
    layer = f"{inner}encoder.layers.{{}}.mlp.fc1.weight"
    projection = _optional(shapes, "visual_projection.weight", 2)
    return _vision(
        width,
        patch,
        positions,
        settings,
        layers=_count(shapes, layer),
        mlp_width=_get(shapes, layer.format(0), 2)[0],
        projection=projection[0] if projection else None,
    )


def open_clip_vision(shapes: Shapes) -> VisionConfig:
    """The config of OpenCLIP's vision transformer, its names without `visual.`."""
    width, _, patch, _ = _get(shapes, "conv1.weight", 4)
    layer = "transformer.resblocks.{}.mlp.c_fc.weight"
    projection = _optional(shapes, "proj", 2)
    return _vision(
        width,
        patch,
        _get(shapes, "positional_embedding", 2)[0],
        {},
        layers=_count(shapes, layer),
        mlp_width=_get(shapes, layer.format(0), 2)[0],
        projection=projection[1] if projection else None,
    )


def _vision(
    width: int, patch: int, positions: int, settings: Settings, **counted: Any
) -> VisionConfig:
    heads = _setting(settings, "num_attention_heads", _VISION_HEADS.get(width, 0))
    if not heads:
        raise InputError(
            f"a CLIP vision encoder of width {width} has a number of heads that its weights do not "
            "tell; give its folder, with config.json"
        )
    return VisionConfig(
        image_size=patch * round((positions - 1) ** 0.5),
        patch_size=patch,
        width=width,
        heads=heads,
        # OpenAI's ViT-B and ViT-L have their own activation, OpenCLIP's larger ones the exact one.
        activation=settings.get("hidden_act", "quick_gelu" if width <= 1024 else "gelu"),
        layer_norm_eps=_number(settings, "layer_norm_eps", VisionConfig.layer_norm_eps),
        **counted,
    )


def image_projection(shapes: Shapes) -> ImageProjectionConfig:
    """The config of an IP-Adapter's image projection, its names without a prefix."""
    for first, last in (("proj.0", "proj.3"), ("ff.net.0.proj", "norm")):
        if f"{first}.weight" in shapes and f"{last}.weight" in shapes:
            width, (out,) = _get(shapes, f"{first}.weight", 2)[1], _get(shapes, f"{last}.weight", 1)
            return ImageProjectionConfig(kind="full", in_width=width, out_width=out, tokens=0)
    if "latents" not in shapes:
        name = "proj" if "proj.weight" in shapes else "image_embeds"
        rows, width = _get(shapes, f"{name}.weight", 2)
        out = _get(shapes, "norm.weight", 1)[0]
        return ImageProjectionConfig(
            kind="linear", in_width=width, width=out, out_width=out, tokens=rows // out
        )
    _, tokens, width = _get(shapes, "latents", 3)
    original = "layers.0.0.to_q.weight" in shapes
    queries = "layers.{}.0.to_q.weight" if original else "layers.{}.attn.to_q.weight"
    inner = "layers.0.1.1.weight" if original else "layers.0.ff.1.net.0.proj.weight"
    head_width = ImageProjectionConfig.head_width
    return ImageProjectionConfig(
        in_width=_get(shapes, "proj_in.weight", 2)[1],
        width=width,
        out_width=_get(shapes, "proj_out.weight", 2)[0],
        tokens=tokens,
        depth=_count(shapes, queries),
        heads=max(1, _get(shapes, queries.format(0), 2)[0] // head_width),
        head_width=min(head_width, _get(shapes, queries.format(0), 2)[0]),
        mlp_ratio=_get(shapes, inner, 2)[0] // width,
    )


def _heads(settings: Settings, channels: tuple[int, ...], linear: bool) -> tuple[int, ...]:
    """Heads by level. diffusers' `attention_head_dim` means their number, by an old mistake."""
    said = settings.get("num_attention_heads") or settings.get("attention_head_dim")
    if said is None:
        said = [max(1, width // 64) for width in channels] if linear else 8
    if not isinstance(said, list | tuple):
        said = [said] * len(channels)
    if len(said) != len(channels):
        raise InputError(f"its config.json names heads for {len(said)} of {len(channels)} levels")
    return tuple(_counts("attention_head_dim", n) for n in said)


def _forms(settings: Settings, known: Mapping[str, tuple[Any, ...]], what: str) -> None:
    for name, forms in known.items():
        if name in settings and settings[name] not in forms:
            raise InputError(f"{what} has {name}={settings[name]!r}, which is not supported")


def _count(shapes: Shapes, template: str) -> int:
    """How many of the names template(0), template(1), ... there are without a gap."""
    n = 0
    while template.format(n) in shapes:
        n += 1
    return n


def _get(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there, with as many axes."""
    _needs(shapes, name)
    if len(shapes[name]) != rank or 0 in shapes[name]:
        raise InputError(f"the tensor {name} is {list(shapes[name])}, which no such network has")
    return shapes[name]


def _needs(shapes: Shapes, *names: str) -> None:
    for name in names:
        if name not in shapes:
            raise Missing(f"the tensor {name} is missing")


def _optional(shapes: Shapes, name: str, rank: int) -> tuple[int, ...] | None:
    return _get(shapes, name, rank) if name in shapes else None


def _setting(settings: Settings, name: str, default: int) -> int:
    """A setting that counts something; `default` where it is not said."""
    value = settings.get(name)
    return default if value is None else _counts(name, value)


def _number(settings: Settings, name: str, default: float) -> float:
    value = settings.get(name)
    value = default if value is None else value
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"its config.json has {name}={value!r}, which is no number")
    return value


def _counts(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"its config.json has {name}={value!r}, which is no number of anything")
    return value
