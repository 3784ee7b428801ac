"""The networks of PyTorch's libraries, filled from the very sources a cascade was converted from.

Single files go through diffusers' own converters and not through this package's, so that a name
misread here is not misread there too. (It has none for OpenCLIP's vision transformer.)
"""

from __future__ import annotations

import re
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.loaders import single_file_utils as single

from mv2_jax.config import ImageProjectionConfig, UNetConfig
from mv2_jax.convert import published
from mv2_jax.convert.checkpoint import Found
from mv2_jax.convert.engine import exported
from mv2_jax.convert.pieces import Piece
from mv2_jax.convert.recognise import Part
from mv2_jax.convert.tables import clip, motion
from mv2_jax.convert.tables import unet as unet_table
from mv2_jax.errors import InputError
from mv2_jax.params import flatten

State = dict[str, torch.Tensor]

diffusers.utils.logging.set_verbosity_error()  # it warns of what does no harm here


def tensor(array: Any) -> torch.Tensor:
    """A torch tensor of an array in any type, bfloat16 bit for bit."""
    if isinstance(array, torch.Tensor):
        return array
    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def state(found: Found) -> State:
    """A source's tensors in diffusers' or transformers' names."""
    part = found.part
    convert = _CONVERTERS.get((part.kind, part.layout))
    if convert is None:
        return {_modern(name): tensor(part.tensors[name]) for name in part.tensors}
    return convert({part.tensors.origin(n): tensor(part.tensors[n]) for n in part.tensors}, part)


def _modern(name: str) -> str:
    """A VAE's attention had other names in diffusers once."""
    old, new = "query|key|value|proj_attn", {"query": "to_q", "key": "to_k", "value": "to_v"}
    return re.sub(rf"(?<=attentions\.0\.)({old})(?=\.)", lambda m: new.get(m[0], "to_out.0"), name)


def _before(mark: str, own: State) -> str:
    """What stands before a name in a file."""
    return next(name for name in own if name.endswith(mark)).removesuffix(mark)


def _ldm_unet(own: State, part: Part) -> State:
    prefix = _before("input_blocks.0.0.weight", own)
    named = {f"model.diffusion_model.{n.removeprefix(prefix)}": t for n, t in own.items()}
    _, settings = published.unet(part.config)
    settings["class_embed_type"] = None
    return single.convert_ldm_unet_checkpoint(named, {"addition_embed_type": None, **settings})


def _ldm_controlnet(own: State, part: Part) -> State:
    prefix = _before("input_blocks.0.0.weight", own)
    named = {n.removeprefix(prefix): t for n, t in own.items()}
    _, settings = published.controlnet(part.config)
    return single.convert_controlnet_checkpoint(named, settings)


def _ldm_vae(own: State, part: Part) -> State:
    prefix = _before("encoder.conv_in.weight", own)
    named = {f"first_stage_model.{n.removeprefix(prefix)}": t for n, t in own.items()}
    return single.convert_ldm_vae_checkpoint(named, published.vae(part.config)[1])


def _motion(own: State, part: Part) -> State:
    converted = single.convert_animatediff_checkpoint_to_diffusers(own)
    # It drops the positional encodings and computes them anew; some were trained.
    for name, value in own.items():
        if name.endswith("attention_blocks.0.pos_encoder.pe"):
            module = re.sub(r"\.temporal_transformer|\.attention_blocks\.0\.pos_encoder", "", name)
            converted[module.replace(".pe", ".pos_embed.pe")] = value
    return converted


def _open_clip(own: State, part: Part) -> State:
    prefix = _before("token_embedding.weight", own)
    config = transformers.CLIPTextConfig(**published.text(part.config)[1])
    return single.convert_open_clip_checkpoint(_Sized(config), own, prefix)


def _open_clip_vision(own: State, part: Part) -> State:
    prefix = _before("conv1.weight", own)
    converted: State = {}
    for name, value in own.items():
        name = name.removeprefix(prefix)
        fused = re.fullmatch(r"(transformer\.resblocks\.\d+\.attn)\.in_proj_(weight|bias)", name)
        if fused:
            for letter, third in zip("qkv", value.chunk(3)):
                converted[f"{fused[1]}.{letter}_proj.{fused[2]}"] = third
        else:
            converted[name] = value.T if name == "proj" else value
    for old, new in _OPEN_CLIP_VISION.items():
        converted = {re.sub(old, new, name): value for name, value in converted.items()}
    return converted


_OPEN_CLIP_VISION = {
    r"^conv1\.": "embeddings.patch_embedding.",
    r"^class_embedding$": "embeddings.class_embedding",
    r"^positional_embedding$": "embeddings.position_embedding.weight",
    r"^proj$": "visual_projection.weight",
    r"^ln_pre\.": "pre_layrnorm.",
    r"^ln_post\.": "post_layernorm.",
    r"^transformer\.resblocks\.": "encoder.layers.",
    r"\.attn\.": ".self_attn.",
    r"\.ln_(\d)\.": r".layer_norm\1.",
    r"\.mlp\.c_fc\.": ".mlp.fc1.",
    r"\.mlp\.c_proj\.": ".mlp.fc2.",
}


class _Sized:
    """All that diffusers' converter asks of a text model."""

    def __init__(self, config: Any):
        self.config = config


def _sparse_control(own: State, part: Part) -> State:
    # The same names as the modules', whose converter leaves the others as they are.
    named = {name: tensor(part.tensors[name]) for name in part.tensors}
    return _motion(named, part) if motion.layout(named).original else named


_CONVERTERS = {
    ("unet", "a single file's (LDM)"): _ldm_unet,
    ("controlnet", "a single file's (LDM)"): _ldm_controlnet,
    ("sparse_control", "diffusers"): _sparse_control,
    ("vae", "a single file's (LDM)"): _ldm_vae,
    ("motion", "AnimateDiff's"): _motion,
    ("text_encoder", "OpenCLIP's"): _open_clip,
    ("image_encoder", "OpenCLIP's"): _open_clip_vision,
}


def module(piece: Piece, dtype: torch.dtype, unet: UNetConfig) -> torch.nn.Module:
    """The network of a piece in PyTorch, computing in fp32.

    Args:
        piece: any but an IP-Adapter, see `with_adapter`.
        dtype: the type that the weights are stored in here; they are rounded to it.
        unet: the UNet that motion modules stand in.

    Raises:
        InputError: the source is gone, or lacks tensors of that network.
    """
    kind, cfg = piece.found.part.kind, piece.config
    if kind == "motion":
        name, settings = published.motion(cfg, unet)
    else:
        name, settings = _PUBLISHED[kind](cfg)
    if kind in ("text_encoder", "image_encoder"):
        config = (
            transformers.CLIPTextConfig if kind == "text_encoder" else transformers.CLIPVisionConfig
        )(**settings)
        made = getattr(transformers, name)(config)
    else:
        made = getattr(diffusers, name)(**settings)
    weights = {_bare(name): value for name, value in state(piece.found).items()}
    _merge(weights, piece)
    own = made.state_dict()
    for name, value in own.items():
        if name.endswith("pos_embed.pe"):  # a plain sinusoid where the file has none
            weights.setdefault(name, value)
    absent = [name for name in own if _bare(name) not in weights]
    if absent:
        raise InputError(f"{piece.found.path}: PyTorch's network also wants {absent[0]}")
    made.load_state_dict(
        {
            name: weights[_bare(name)].to(dtype).float().reshape(value.shape)
            for name, value in own.items()
        }
    )
    return made.eval()


def with_adapter(unet: torch.nn.Module, piece: Piece, dtype: torch.dtype) -> None:
    """Puts an IP-Adapter of its own files' layout into diffusers' UNet.

    Raises:
        InputError: a Plus adapter of another depth than the published, the one that diffusers has.
    """
    if piece.config.kind == "resampler" and piece.config.depth != ImageProjectionConfig.depth:
        raise InputError(f"diffusers has no IP-Adapter-Plus of {piece.config.depth} layers")
    halves: dict[str, State] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in state(piece.found).items():
        half, _, rest = name.partition(".")
        halves[half][rest] = value.to(dtype).float()
    unet._load_ip_adapter_weights([halves], low_cpu_mem_usage=False)
    unet.eval()


def _merge(weights: State, piece: Piece) -> None:
    """Adds what LoRAs add, in PyTorch's own layout."""
    if not piece.changes:
        return
    kind = piece.found.part.kind
    table = {
        "unet": lambda: unet_table.rules(piece.config),
        "text_encoder": lambda: clip.transformers_text(""),
        "motion": motion.diffusers,
    }[kind]()
    for key, (_, leaves) in exported(flatten(piece.target), table).items():
        for change in piece.changes.get(leaves[0], ()):
            old = weights[key]
            added = change.weight * torch.from_numpy(change.product.change())
            weights[key] = old.float() + added.reshape(old.shape)


def _bare(name: str) -> str:
    """A name without what stands before a CLIP tower's own names."""
    return re.sub(r"^.*\b(text_model|vision_model)\.", "", name)


_PUBLISHED = {
    "unet": published.unet,
    "vae": published.vae,
    "text_encoder": published.text,
    "image_encoder": published.vision,
    "controlnet": published.controlnet,
    "sparse_control": published.sparse_control,
}


class EachFrame(torch.nn.Module):
    """A GroupNorm over each frame alone, where diffusers normalises a clip's frames together."""

    def __init__(self, norm: torch.nn.GroupNorm):
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, C, T, H, W] -> the same."""
        frames = x.transpose(1, 2)
        return self.norm(frames.flatten(0, 1)).reshape(frames.shape).transpose(1, 2)
